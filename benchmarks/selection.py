"""Planted truth on real text: do selectors find the rows of one kind among eight, from sixteen of its rows?

    python benchmarks/selection.py --sft FOLDER --text FOLDER [--pretrained FOLDER] [--documents] [--seeds 1,2,3]
                                   [--work FOLDER] [--table FILE]

The protocol was written before it was run, and is run once. FOLDER holds NAME.train.jsonl.gz and
NAME.validation.jsonl.gz, instructions in one and text in the other.

Pool. Four tasks (CommonsenseQA, GSM8K, MBPP, MedQuAD) and four domains (books, dialogue, LaTeX, law), 100 rows each,
all as examples of fine-tuning: a passage of a domain is asked by its first 100 characters and answered by the next 250.
No two of the eight hold the same kind of text, or there would be no truth: medical text is of MedQuAD, code is like
MBPP. Which rows, a seed draws. Each of the eight is the target once, by 16 rows of its validation file that the seed
draws too. As many rows are kept as are of that kind, so that precision is recall, and chance finds an eighth. Rows are
told by their kind, which no method sees.

Model. Without a pretrained one, one `nano` (1M parameters, for which the tokens are few as it is) reads 2M tokens of
ten domains of text, and then fine-tunes for four epochs on 200 rows of each of the eight kinds, with a checkpoint after
each, as in LESS. All its text is from every second document of the training files, the pool's from the others. It is
made once for all seeds. With --pretrained, a folder in Hugging Face's layout (written before it was run with one): that
model fine-tunes adapters for four epochs on 50 rows of each kind, by LESS's own settings (rank 128, alpha 512, dropout
0.1, attention only, learning rate 2e-5), in bfloat16.

Methods. The five with their default settings, but for what the data imposes: DSIR's least length of a web document, 100
tokens, is 0, since most answers are shorter. Beneath, DSIR and TSDS with what their settings advise for a small target
and for vectors of length 1: TSDS with alpha=0.95; DSIR with 1,000 buckets, a 1 added to each, means, and no noise,
which on means of a row would drown them. LESS with plain gradients of all linear layers at the weights that the run
begins with, no checkpoints, and a sketch eight times as long, was put in after LESS was seen under the pretrained
model: adapters of 100 steps are nearly untrained, and Adam's direction presumably gives their noise full weight. LESS
with `contrast`, which takes off what a row does for 256 rows of the pool, was put in after documents were seen. DSIR
with a 1 added alone was put in after the first seed was seen; the centred embeddings after it was found, on seed 1 of
the pretrained model, that all rows lie within TSDS's sigma. Drawn with replacement, as the paper draws, a row counts as
often as it is drawn.

Documents. Rows of 4,000 characters of eight domains, 60 of each, and 16 of each as target: what DSIR was made for, with
its paper's settings, and with a 1 added. Put in after the first table, to see whether length decides there too; its
first seed was seen before the rest was run. Under a pretrained model (written before it was run, to see whether it is
length that LESS lacks on passages): rows of 2,000 characters, 40 of each, since a CPU takes five seconds for the
gradient of one; LESS with plain gradients, and the three that compare hidden states, at the weights that are given.

All targets are measured at once, as subtasks of one target set, and each is then given its own columns alone, which is
what a target set of its own would give.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from planted_rows import DOCUMENTS, KINDS, TASKS, TEXT, drawn, passages, read, write
from planted_selection import Found, select

from regimen.data.pool import Pool

ROWS, TARGETS, WARM = 100, 16, 200  # per kind
PRETRAINED_TOKENS, PRETRAINED_WARM = 2_000_000, 50
COMMON = [
    *("model=nano", "dataset.overlap.n=0", "dataset.seq_len=256", "dataset.max_epochs_per_domain=null"),
    *("dataset.validation.max_rows=4", "trainer.global_batch_size=16", "trainer.threads=1", "trainer.progress=none"),
    "evaluation.at=[1]",
]
ADAPTERS = [
    *("model.lora.rank=128", "model.lora.alpha=512", "model.lora.dropout=0.1", "optimizer.lr=2e-5"),
    "model.lora.targets=[q_proj,k_proj,v_proj,o_proj]",
]
EXAMPLES = ["objective=sft", "dataset=sft_files", "dataset.domain_field=task", "dataset.validation.fraction=0.01"]
PLAIN = [
    *("method=less", "++strategies.less.by.run=null", "strategies.less.by.sketch.adam=none", "model.lora.rank=null"),
    *("strategies.less.by.sketch.dimensions=65536", "strategies.less.by.sketch.parameters=_proj"),
]
# What each method is told beside the amount; {warm}: the folder of the run whose model is measured under.
METHODS: dict[str, list[str]] = {
    "less": ["method=less", "++strategies.less.by.run={warm}"],
    "rds": ["method=rds", "strategies.rds.by.of.model={warm}"],
    "tsds": ["method=tsds", "strategies.tsds.by.model={warm}"],
    "near": ["method=near", "strategies.near.by.of.model={warm}"],
    "dsir": ["method=dsir", "strategies.dsir.min_tokens=0"],
    "less, plain gradients": PLAIN,
    "less, plain gradients, contrast=256": [*PLAIN, "strategies.less.by.contrast=256"],
    "near, centred": ["method=near", "strategies.near.by.of.model={warm}", "strategies.near.by.centre=true"],
    "tsds, centred, scale=1, repeats": [
        *("method=tsds", "strategies.tsds.by.model={warm}", "strategies.tsds.centre=true"),
        *("strategies.tsds.scale=1", "strategies.tsds.draw=repeats"),
    ],
    "tsds, alpha=0.95": ["method=tsds", "strategies.tsds.by.model={warm}", "strategies.tsds.alpha=0.95"],
    "dsir, laplace": ["method=dsir", "strategies.dsir.min_tokens=0", "strategies.dsir.by.laplace=true"],
    "dsir, laplace, 1,000 buckets, per_token, temperature=0": [
        *("method=dsir", "strategies.dsir.min_tokens=0", "strategies.dsir.by.laplace=true"),
        *("strategies.dsir.by.per_token=true", "strategies.dsir.by.buckets=1000", "strategies.dsir.temperature=0"),
    ],
}
OF_DOCUMENTS = {"dsir": ["method=dsir"], "dsir, laplace": ["method=dsir", "strategies.dsir.by.laplace=true"]}
UNDER_MODEL = {
    name: METHODS[name]
    for name in (
        *("less, plain gradients", "less, plain gradients, contrast=256", "rds", "near"),
        "tsds, centred, scale=1, repeats",
    )
}


class Long(NamedTuple):
    """Passages of a domain, characters of each, and tokens of a row."""

    passages: int
    characters: int
    tokens: int


LONG_UNDER_MODEL = Long(40, 2_000, 512)
OF_TEXT = (DOCUMENTS, OF_DOCUMENTS, Long(60, 4_000, 1_024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", help="separated by semicolons; all")
    parser.add_argument("--documents", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("outputs/planted"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    folders, work = {**dict.fromkeys(TASKS, given.sft), **dict.fromkeys(TEXT, given.text)}, given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if given.documents:
        kinds, methods, long = (DOCUMENTS, UNDER_MODEL, LONG_UNDER_MODEL) if given.pretrained else OF_TEXT
        made = partial(write_documents, long)
    else:
        kinds, methods, made = KINDS, METHODS, write_examples
    found: dict[str, list[dict[str, Found]]] = {name: [] for name in (given.methods or ";".join(methods)).split(";")}
    warm = "null" if given.documents else str(work / "warm")
    if not given.documents:
        asked = any("{warm}" in setting for name in found for setting in methods[name])
        model = warm_model(folders, work, given.pretrained, asked=asked)
    else:
        model = pretrained_model(given.pretrained.absolute()) if given.pretrained else []
    for seed in map(int, given.seeds.split(",")):
        data = [*made(folders, work, seed), *model]
        for name, per_seed in found.items():
            settings = [setting.format(warm=warm) for setting in methods[name]]
            per_seed.append(select([*data, *settings], work / "scores"))
            print(f"seed {seed}, {name}: {per_seed[-1]}", file=sys.stderr, flush=True)
    lines = table(found, kinds)
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 0


def table(found: dict[str, list[dict[str, Found]]], kinds: Sequence[str]) -> list[str]:
    """A line of each method: mean, least and greatest over seeds, by kind, and the mean of means."""
    lines = [f"| method | {' | '.join(kinds)} | mean |", "|---" * (len(kinds) + 2) + "|"]
    for name, per_seed in found.items():
        found_of = [[one[kind].precision for one in per_seed] for kind in kinds]
        cells = [[value for value in cell if not math.isnan(value)] or [math.nan] for cell in found_of]
        told = [f"{statistics.mean(cell):.2f} ({min(cell):.2f}-{max(cell):.2f})" for cell in cells]
        lines.append(f"| {name} | {' | '.join(told)} | {statistics.mean(map(statistics.mean, cells)):.3f} |")
    return lines


# ---- data and model -----------------------------------------------------------------------------------------------


def warm_model(folders: dict[str, Path], work: Path, pretrained: Path | None, *, asked: bool) -> list[str]:
    """Trains, in `work`/warm, the run whose four checkpoints everything is measured under; settings that fit it.

    A finished one is taken as it is.
    """
    if pretrained is not None:
        return adapted_model(folders, work, pretrained.absolute(), asked)
    return small_model(folders, work)


def small_model(folders: dict[str, Path], work: Path) -> list[str]:
    """From nothing: text first, then examples."""
    text, exported = work / "text.jsonl", work / "exported"
    records = [{**r, "domain": name} for name in TEXT for r in read(folders[name], name, "train")[::2]]
    text.write_text("".join(json.dumps(record) + "\n" for record in records))
    of_text = [
        "dataset=jsonl",
        "dataset.domain_field=domain",
        "dataset.validation.fraction=0.01",
        f"dataset.path={text}",
    ]
    taught = ["method=natural", "optimizer.lr=3e-3", f"budget.tokens={PRETRAINED_TOKENS}", f"run_dir={work}/base"]
    regimen("train", *COMMON, *places(work), *of_text, *taught)
    if not exported.exists():
        regimen("export", f"run={work}/base", f"to={exported}")
    settings = [*read_by(work), "model.pretrained=true", f"model.path={exported}"]
    fine_tune(folders, work, settings, WARM)
    return settings


def adapted_model(folders: dict[str, Path], work: Path, pretrained: Path, asked: bool) -> list[str]:
    """From a pretrained model, by adapters, where a method asks for them."""
    settings = [*pretrained_model(pretrained), *ADAPTERS]
    if asked:
        fine_tune(folders, work, settings, PRETRAINED_WARM)
    return settings


def pretrained_model(folder: Path) -> list[str]:
    tokenizer = ["dataset.tokenizer.kind=hf", f"dataset.tokenizer.path={folder}"]
    return [*tokenizer, "model.pretrained=true", f"model.path={folder}", "trainer.precision=bf16-mixed"]


def fine_tune(folders: dict[str, Path], work: Path, model: list[str], rows: int) -> None:
    warm = write([drawn(folders[kind], kind, "train", rows, seed=0, part=0) for kind in KINDS], work / "warm.jsonl")
    tuned = ["method=natural", "budget.epochs=4", "trainer.save_at=[0.25,0.5,0.75,1]", f"run_dir={work}/warm"]
    regimen("train", *COMMON, *places(work), *EXAMPLES, *model, f"dataset.path={warm}", *tuned)


def places(work: Path) -> list[str]:
    return [f"paths.pools={work}/pools", f"paths.outputs={work}/outputs", f"paths.store={work}/store"]


def read_by(work: Path) -> list[str]:
    """The tokenizer of the text that the model learnt from."""
    fingerprint = json.loads((work / "base" / "summary.json").read_text())["fingerprints"]["pool"]
    found = (Pool.open(path.parent) for path in (work / "pools").glob("*/manifest.json"))
    pool = next(pool for pool in found if pool.fingerprint == fingerprint)
    return ["dataset.tokenizer.kind=hf", f"dataset.tokenizer.path={pool.tokenizer_path}"]


def write_examples(folders: dict[str, Path], work: Path, seed: int) -> list[str]:
    """Settings of the pool and target set that a seed draws."""
    to = work / f"seed-{seed}"
    to.mkdir(exist_ok=True)
    pool = write([drawn(folders[kind], kind, "train", ROWS, seed=seed, part=1) for kind in KINDS], to / "pool.jsonl")
    held = [drawn(folders[kind], kind, "validation", TARGETS, seed=seed, part=None) for kind in KINDS]
    target = [f"dataset.target.path={write(held, to / 'target.jsonl')}", "dataset.target.rows_per_subtask=null"]
    return [*COMMON, *EXAMPLES, *places(work), f"dataset.path={pool}", *target, f"seed={seed}"]


def write_documents(long: Long, folders: dict[str, Path], work: Path, seed: int) -> list[str]:
    """The same of passages, which fill a row each, but for what their lengths in tokens differ by."""
    to = work / f"documents-{seed}"
    to.mkdir(exist_ok=True)
    sizes = {"train": long.passages, "validation": TARGETS}
    pool, held = (
        [passages(folders[kind], kind, split, count, long=long.characters, seed=seed) for kind in DOCUMENTS]
        for split, count in sizes.items()
    )
    path = write(pool, to / "pool.jsonl")
    target = [f"dataset.target.path={write(held, to / 'target.jsonl')}", "dataset.target.rows_per_subtask=null"]
    rows = ["dataset=jsonl", "dataset.domain_field=task", f"dataset.path={path}", "dataset.validation.fraction=0.02"]
    common = [f"dataset.seq_len={long.tokens}" if "seq_len" in setting else setting for setting in COMMON]
    return [*common, *rows, *target, *places(work), f"seed={seed}"]


def regimen(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "regimen", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
