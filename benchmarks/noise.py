"""Planted noise: are exchanged answers and near-copies told from other rows by the methods that claim to tell them?

    python benchmarks/noise.py --corpus FOLDER [--seeds 11,12,13] [--work FOLDER] [--table FILE]

FOLDER holds instructions as NAME.train.jsonl.gz and NAME.validation.jsonl.gz.

Exchanged answers. 200 rows of each of three tasks; a third of the answers are exchanged within the task. A model of 64
numbers in two layers learns from other rows of these tasks, all clean, and then goes on with the 600 for three epochs.
RHO-LOSS compares the loss after that with the loss before; in-run values, DVEmb and LESS value the rows of that second
run for a clean target set, 16 rows of each task. The table shows by task the chance that a clean row scores above one
with the answer of another (AUROC; 0.5 is chance). What `medquad` asks here is one of four things, its answers are their
first four words, which mostly say what was asked, and an exchanged answer is one to another kind of question.

Read two rows first. Where `low loss, before` is near 0.5, the model has not learnt what makes an answer wrong, and a
method that asks the model cannot know it either. And RHO-LOSS has the best case here: the model in training went on
from its own reference, so that a reducible loss is what the second run took off, with the sign turned.

Near-copies. Of 300 rows, 20 have five copies with some words replaced. The table shows how often such a row is kept for
once that another is.

Tasks, sizes, seeds and settings are fixed here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from grids import spread

from regimen.data.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.planted import (  # noqa: E402
    Record,
    auroc,
    copied,
    examples,
    exchanged,
    ids_of_rows,
    of_kinds,
    write,
)

TASKS = ("medquad", "commonsense", "mbpp")
MEASURED, CLEAN, TARGET, WORDS = 200, 1000, 16, 4  # rows per task
MODEL = [
    *("model=nano", "model.config.hidden_size=64", "model.config.intermediate_size=128"),
    *("model.config.num_hidden_layers=2", "objective=sft", "dataset=sft_files", "dataset.domain_field=task"),
    *("dataset.overlap.n=0", "dataset.validation.fraction=0.01", "dataset.validation.max_rows=4"),
    *("dataset.max_epochs_per_domain=null", "dataset.target.rows_per_subtask=1000", "trainer.global_batch_size=16"),
    *("trainer.threads=1", "trainer.progress=none", "evaluation.at=[1]"),
]
SAVED = "trainer.save_at=[0.25,0.5,0.75,1]"
GRAMS = "+signal.grams={_target_: regimen.signals.ngrams.NgramFeatures, dimensions: 1024, n: 2}"
SPREAD = ["strategies.tsds.by=${signal.grams}", "strategies.tsds.alpha=0", "strategies.tsds.sigma=1.0"]
COPIES = {
    "deduplicate": ["method=deduplicate"],
    "density": ["method=density", "strategies.density.ratio=0.1"],
    "density, bandwidth=2 power=12, 1024 dimensions": [
        *("method=density", "strategies.density.ratio=0.1", "strategies.density.by=${signal.grams}"),
        *("strategies.density.bandwidth=2", "strategies.density.power=12"),
    ],
    "tsds, alpha=0 density=uniform": [
        *("method=tsds", "strategies.tsds.ratio=0.1", *SPREAD, "strategies.tsds.density=uniform")
    ],
    "tsds, alpha=0 density=kde": ["method=tsds", "strategies.tsds.ratio=0.1", *SPREAD],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--seeds", default="11,12,13")
    parser.add_argument("--work", type=Path, default=Path("outputs/noise"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    exchanges, kept = [], []
    for seed in seeds:
        work = given.work.absolute() / f"seed-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        kept.append(copies_kept(given.corpus, work, seed))
        exchanges.append(answers_told(given.corpus, work, seed))
        print(f"seed {seed}: {kept[-1]} {exchanges[-1]}", file=sys.stderr, flush=True)
    lines = [f"| AUROC, clean above exchanged | {' | '.join(TASKS)} |", "|---" * (len(TASKS) + 1) + "|"]
    for method in exchanges[0]:
        cells = [spread([found[method][task] for found in exchanges]) for task in TASKS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "| near-copies | kept per other row that is kept |", "|---|---|"]
    lines += [f"| {method} | {spread([found[method] for found in kept])} |" for method in kept[0]]
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 0


# ---- exchanged answers --------------------------------------------------------------------------------------------


def answers_told(corpus: Path, work: Path, seed: int) -> dict[str, dict[str, float]]:
    """AUROC by method and task."""
    wrong = write_tasks(corpus, work, seed)
    common = [*MODEL, *places(work), f"seed={seed}", "dataset.seq_len=256"]
    tokenizer = ["dataset.tokenizer.vocab_size=1024"]
    clean = [*common, *tokenizer, f"dataset.path={work}/clean.jsonl"]
    base = train(clean, work / "base", "method=natural", "budget.epochs=3", "optimizer.lr=1e-2")
    pool = pool_of(work, json.loads((base / "summary.json").read_text())["fingerprints"]["pool"])
    tokenizer = ["dataset.tokenizer.kind=hf", f"dataset.tokenizer.path={pool.tokenizer_path}"]
    mixed = [*common, *tokenizer, f"dataset.path={work}/mixed.jsonl", f"dataset.target.path={work}/target.jsonl"]
    before = start_from(base, work / "before")
    go_on = [*before, "budget.epochs=3", "optimizer.lr=5e-4"]
    valued = train(
        *(mixed, work / "values", "method=in_run_values", "strategies.in_run_values.by.sketch.dimensions=2048"),
        *(*go_on, SAVED),
    )
    log = train(mixed, work / "log", "method=dvemb_log", *go_on)
    after = start_from(valued, work / "after")
    scores = {
        "RHO-LOSS": score(mixed, work / "rho", *after, by("reducible_loss.ReducibleLoss", reference=base)),
        "LESS": score(mixed, work / "less", "method=less", f"++strategies.less.by.run={valued}"),
        "In-Run Data Shapley": np.load(valued / "gives" / "scores.npy").tolist(),
        "DVEmb": score(
            *(mixed, work / "dvemb"),
            by(
                "embedded_value.EmbeddedValue",
                embeddings=log / "gives" / "embeddings.npy",
                embedded=log / "gives" / "embedded.npy",
                run=log,
            ),
        ),
        "low loss, before": negative(score(mixed, work / "loss-before", *before, "score.by=${signal.loss}")),
        "low loss, after": negative(score(mixed, work / "loss-after", *after, "score.by=${signal.loss}")),
        "low perplexity (trigrams)": negative(score(mixed, work / "perplexity", by("kneser_ney.NgramPerplexity"))),
    }
    pool = pool_of(work, json.loads((work / "rho" / "manifest.json").read_text())["pool"])
    names, tasks = ids_of_rows(pool), pq.read_table(work / "rho" / "scores.parquet")["domain"].to_pylist()
    return {method: by_task(names, tasks, found, wrong) for method, found in scores.items()}


def write_tasks(corpus: Path, work: Path, seed: int) -> set[str]:
    """Writes clean.jsonl, mixed.jsonl and target.jsonl; returns the ids of rows with another's answer."""
    clean: list[Record] = []
    mixed: list[Record] = []
    target: list[Record] = []
    wrong: set[str] = set()
    for task in TASKS:
        limit = {} if task == "medquad" else {"characters": 500}
        train, held = (examples(corpus, task, split, seed=seed, **limit) for split in ("train", "validation"))
        if task == "medquad":
            train, held = of_kinds(train, words=WORDS), of_kinds(held, words=WORDS)
        rows, ids = exchanged(train[:MEASURED], seed=seed, kinds=task == "medquad")
        mixed, wrong = [*mixed, *rows], wrong | ids
        clean += train[MEASURED : MEASURED + CLEAN]
        target += held[:TARGET]
    for name, records in (("clean", clean), ("mixed", mixed), ("target", target)):
        write(records, work / f"{name}.jsonl")
    return wrong


def by_task(names: Sequence[str], tasks: Sequence[str], scores: Sequence[float], wrong: set[str]) -> dict[str, float]:
    found = {}
    for wanted in TASKS:
        own = [(name in wrong, value) for name, task, value in zip(names, tasks, scores, strict=True) if task == wanted]
        found[wanted] = auroc([v for bad, v in own if not bad], [v for bad, v in own if bad])
    return found


def start_from(run: Path, to: Path) -> list[str]:
    """Settings of a run that begins with the model of a finished one."""
    regimen("export", f"run={run}", f"to={to}")
    return ["model.pretrained=true", f"model.path={to}"]


def by(signal: str, **fields: object) -> str:
    """`score.by` a signal."""
    told = "".join(f", {name}: {value}" for name, value in fields.items())
    return f"score.by={{_target_: regimen.signals.{signal}{told}}}"


def negative(scores: Sequence[float]) -> list[float]:
    return [-score for score in scores]


# ---- near-copies --------------------------------------------------------------------------------------------------


def copies_kept(corpus: Path, work: Path, seed: int) -> dict[str, float]:
    """By method, how often a row that has copies, or is one, is kept for once that another row is."""
    found = [r for r in examples(corpus, "gsm8k", "train", seed=seed, characters=900) if len(r["output"]) > 300]
    rows, source = copied(found[:200], sources=20, copies=5, seed=seed)
    held = examples(corpus, "gsm8k", "validation", seed=seed, characters=900)[:32]
    shape = ["dataset.tokenizer.kind=bytes", "dataset.seq_len=1024", f"seed={seed}", GRAMS]
    data = [
        f"dataset.path={write(rows, work / 'copies.jsonl')}",
        f"dataset.target.path={write(held, work / 'held.jsonl')}",
    ]
    told = {}
    for number, (method, settings) in enumerate(COPIES.items()):
        out = work / f"copies-{number}"
        score([*MODEL, *places(work), *shape, *data], out, *settings)
        names = ids_of_rows(pool_of(work, json.loads((out / "manifest.json").read_text())["pool"]))
        inside, of = Counter[bool](), Counter[bool]()
        for name, keeps in zip(names, pq.read_table(out / "scores.parquet")["kept"].to_pylist(), strict=True):
            of[name in source] += 1
            inside[name in source] += keeps
        told[method] = (inside[True] / of[True]) / (inside[False] / of[False])
    return told


# ---- the command line ---------------------------------------------------------------------------------------------


def places(work: Path) -> list[str]:
    return [f"paths.pools={work}/pools", f"paths.outputs={work}/outputs"]


def pool_of(work: Path, fingerprint: str) -> Pool:
    """The prepared pool with this fingerprint."""
    found = (Pool.open(path.parent) for path in (work / "pools").glob("*/manifest.json"))
    return next(pool for pool in found if pool.fingerprint == fingerprint)


def train(common: Sequence[str], to: Path, *settings: str) -> Path:
    regimen("train", *common, *settings, f"run_dir={to}")
    return to


def score(common: Sequence[str], to: Path, *settings: str) -> list[Any]:
    """Scores of all training rows, in their order."""
    regimen("score", *common, *settings, f"run_dir={to}")
    found: list[Any] = pq.read_table(to / "scores.parquet")["score"].to_pylist()
    return found


def regimen(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "regimen", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
