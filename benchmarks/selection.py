"""Planted truth: do selectors find the rows of a task among those of others, from a few of its rows?

    python benchmarks/selection.py --corpus FOLDER [--kind tasks] [--rows 150] [--target 32] [--seeds 3] [--table FILE]

FOLDER holds NAME.train.jsonl.gz and NAME.validation.jsonl.gz: instructions for --kind tasks, text for --kind domains.
The pool mixes `rows` training examples of every task, or about as many rows of packed text of every domain; the target
set is `target` validation examples of one. Each method keeps as many rows as the pool has of
that task, so that precision equals recall and a random choice finds the task's share. Rows are told by their task,
which no method sees. Methods that measure under a model do so under a small one that has been trained on the whole
pool, since there is no pretrained one here. Tasks, sizes, seeds and settings are fixed here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

KINDS = {  # each name of one kind, or there would be no truth to find
    "tasks": ("commonsense", "gsm8k", "mbpp", "medquad"),
    "domains": ("code", "latex", "law", "medical"),
}
MODEL = [
    *("model=nano", "dataset.tokenizer.vocab_size=4096", "dataset.overlap.n=0", "dataset.validation.max_rows=4"),
    *("trainer.global_batch_size=16", "trainer.threads=1", "trainer.progress=none", "optimizer.lr=2e-3"),
    "dataset.domain_field=task",
]
OF_KIND = {
    "tasks": ["objective=sft", "dataset=sft_files", "dataset.seq_len=256"],
    "domains": ["dataset=jsonl", "dataset.seq_len=128", "dataset.validation.fraction=0.05"],
}
CHARACTERS = 350  # of text in a row of 128 tokens, about
WARM_EPOCHS = 8
# What each method is told beside the amount; {warm}: the folder of the run whose model is measured under.
METHODS: dict[str, list[str]] = {
    "random": [],
    "dsir": [  # smoothed, since the target is small
        *("strategies.dsir.min_tokens=0", "strategies.dsir.temperature=0", "strategies.dsir.by.laplace=true"),
        *("strategies.dsir.by.per_token=true", "strategies.dsir.by.buckets=1000"),
    ],
    "near": ["strategies.near.by.of.model={warm}"],
    "rds": ["strategies.rds.by.of.model={warm}"],
    "tsds": ["strategies.tsds.by.model={warm}", "strategies.tsds.alpha=0.95"],
    "less": ["++strategies.less.by.run={warm}"],
    "cluster_less": ["strategies.cluster_less.by.embedding.model={warm}", "strategies.cluster_less.by.run={warm}"],
    "influence_distillation": [
        *("++strategies.influence_distillation.by.run={warm}", "strategies.influence_distillation.by.landmarks=256"),
        "++strategies.influence_distillation.by.embedding.model={warm}",
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, default="tasks")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--target", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tasks", help="targets, separated by commas; default: all of the kind")
    parser.add_argument("--work", type=Path, default=Path("outputs/planted"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    methods, tasks = given.methods.split(","), (given.tasks or ",".join(KINDS[given.kind])).split(",")
    MODEL.extend(OF_KIND[given.kind])
    pool = write_pool(given.corpus, given.work / "pool.jsonl", given.rows, given.kind)
    targets = {task: write_target(given.corpus, given.work, task, given.target, given.kind) for task in tasks}
    for seed in range(1, given.seeds + 1):
        warm_up(pool, targets[tasks[0]], given.work, seed)
    lines = [f"| method | {' | '.join(tasks)} | seconds |", "|---" * (len(tasks) + 2) + "|"]
    for method in methods:
        cells, seconds = [], []
        for task in tasks:
            found = []
            for seed in range(1, given.seeds + 1):
                start = time.perf_counter()
                found.append(precision(method, task, pool, targets[task], given.work, seed))
                seconds.append(time.perf_counter() - start)
            cells.append(f"{statistics.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
        lines.append(f"| {method} | {' | '.join(cells)} | {statistics.median(seconds):.0f} |")
        print(lines[-1], flush=True)
    share = 1 / len(KINDS[given.kind])
    lines.append(f"| a random choice, about | {' | '.join(f'{share:.3f}' for _ in tasks)} | |")
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 0


def write_pool(corpus: Path, to: Path, rows: int, kind: str) -> Path:
    """The first training examples of each task, or of each domain as many documents as fill so many rows."""
    with to.open("w") as file:
        for name in KINDS[kind]:
            for record in _first(_read(corpus / f"{name}.train.jsonl.gz"), rows, kind):
                file.write(json.dumps({**record, "task": name}) + "\n")
    return to


def write_target(corpus: Path, work: Path, name: str, rows: int, kind: str) -> Path:
    """The first validation examples of one."""
    to = work / f"target-{name}.jsonl"
    with to.open("w") as file:
        for record in _first(_read(corpus / f"{name}.validation.jsonl.gz"), rows, kind):
            file.write(json.dumps({**record, "task": name}) + "\n")
    return to


def _first(records: list[dict], rows: int, kind: str) -> list[dict]:
    """As many records as make so many rows; long documents are cut, so that there are several."""
    if kind == "tasks":
        return records[:rows]
    kept, room = [], rows * CHARACTERS
    for record in records:
        text = record["text"][: min(room, 10 * CHARACTERS)]
        room -= len(text)
        kept.append({**record, "text": text})
        if room <= 0:
            break
    return kept


def _read(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def warm_up(pool: Path, target: Path, work: Path, seed: int) -> None:
    """Train the model that is measured under, and keep four checkpoints of it."""
    told = [
        f"budget.epochs={WARM_EPOCHS}",
        "dataset.max_epochs_per_domain=null",
        "trainer.save_at=[0.25,0.5,0.75,1]",
        "evaluation.at=[1]",
    ]
    _regimen(
        "train", "method=natural", *_data(pool, target, work), *told, f"seed={seed}", f"run_dir={_warm(work, seed)}"
    )


def _warm(work: Path, seed: int) -> Path:
    return work / f"warm-{seed}"


def precision(method: str, task: str, pool: Path, target: Path, work: Path, seed: int) -> float:
    """The part of the kept rows that is of `task`; as many are kept as there are."""
    out = work / f"{method}-{task}-{seed}"
    rows = rows_of(pool, target, task, work)
    amount = [f"strategies.{method}.ratio=null", f"strategies.{method}.count={rows}"]
    told = [setting.format(warm=_warm(work, seed).absolute()) for setting in METHODS[method]]
    _regimen("score", f"method={method}", *_data(pool, target, work), *amount, *told, f"seed={seed}", f"run_dir={out}")
    table = pq.read_table(out / "scores.parquet").to_pydict()
    kept = [domain for domain, keeps in zip(table["domain"], table["kept"], strict=True) if keeps]
    return kept.count(task) / len(kept)


def rows_of(pool: Path, target: Path, task: str, work: Path) -> int:
    """Training rows of a task: validation rows are set aside, and rows without an answer left out."""
    out = work / f"rows-{task}"
    _regimen("score", "method=natural", "score.by=${signal.length}", *_data(pool, target, work), f"run_dir={out}")
    return pq.read_table(out / "scores.parquet").to_pydict()["domain"].count(task)


def _data(pool: Path, target: Path, work: Path) -> list[str]:
    places = [f"paths.pools={work.absolute()}/pools", f"paths.outputs={work.absolute()}/outputs"]
    own = [f"dataset.path={pool.absolute()}", f"dataset.target.path={target.absolute()}"]
    return [*MODEL, *places, *own, "dataset.target.rows_per_subtask=1000"]


def _regimen(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "regimen", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
