"""Planted noise in pretraining text: do LQS, PDS and DWM tell shuffled rows from others, and do copies matter to them?

    python benchmarks/planted_text.py --corpus FOLDER [--noise tokens,words] [--seeds 11,12,13] [--work FOLDER]

FOLDER holds pretraining text as NAME.train.jsonl.gz and NAME.validation.jsonl.gz.

300 rows of 128 bytes, one per document, of three domains; a third of them have their tokens shuffled (bytes), or in a
second pool their words, which keeps the letters and the words and loses the order. 30 of the clean rows have a copy
that differs in its last letter. A model of 64 numbers in two layers trains on all rows for 16 epochs; LQS and PDS
descend from it, for a clean target set of 8 rows per domain, held out; a scorer learns LQS from 108 of the rows. The
loss is that model's; the trigram model is counted on the other half of the noisy rows. DWM trains anew for as many
steps, in two stages with 200 lessons before the second; its scores are the mean weights of a row in the second.

The table shows the chance that a clean row scores above a noisy one (AUROC; 0.5 is chance), and that a clean row with
a copy, or a copy, scores above one without. Sizes, seeds and settings are fixed here.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from grids import spread
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.planted import auroc, ids_of_rows, write  # noqa: E402
from tests.support.runs import compose_settings  # noqa: E402

from regimen.core.strategy import WeighedBatch  # noqa: E402
from regimen.runs.experiment import make_pool  # noqa: E402
from regimen.runs.export import export  # noqa: E402
from regimen.runs.score import score  # noqa: E402
from regimen.runs.train import train  # noqa: E402
from regimen.weighting.dwm import Dwm, DwmState  # noqa: E402

DOMAINS = ("wikipedia", "stackexchange", "law")
ROWS, COPIES, TARGET, LENGTH, EPOCHS = 100, 10, 8, 128, 16  # rows, copies and targets per domain
NOISE = ("tokens", "words")
SETTINGS = (
    *("dataset=jsonl", f"dataset.seq_len={LENGTH}", "dataset.tokenizer.kind=bytes"),
    *("dataset.domain_field=domain", "dataset.overlap.n=0", "dataset.validation.fraction=0.01"),
    *("dataset.validation.max_rows=4", "dataset.max_epochs_per_domain=null", "dataset.target.rows_per_subtask=1000"),
    *("model=nano", "model.config.hidden_size=64", "model.config.intermediate_size=128"),
    *("model.config.num_hidden_layers=2", "optimizer.lr=5e-3", "trainer.global_batch_size=16", "trainer.threads=1"),
    *("trainer.progress=none", "trainer.save_every_minutes=null", "evaluation.at=[1]", f"budget.epochs={EPOCHS}"),
)
DESCENT = [f"strategies.lqs.by.descent.{x}" for x in ("steps=20", "annotate_every=5", "lr=0.02", "batch_rows=16")]
LEARNT = ["model=own", "rows=108", "batch_rows=8", "lr=1e-3"]
LESSONS = ["strategies.dwm.stages=2", "strategies.dwm.meta_lr=1e-3", "strategies.dwm.width=32"]
SEEN: list[tuple[Tensor, Tensor]] = []  # ids and weights of each batch of the run at hand


class Watched(Dwm):
    """Tells its weights."""

    def weigh(self, state: DwmState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        weights = super().weigh(state, losses, batch)
        if state.steps:
            SEEN.append((batch.ids, weights))
        return weights


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--seeds", default="11,12,13")
    parser.add_argument("--noise", default=",".join(NOISE))
    parser.add_argument("--work", type=Path, default=Path("outputs/planted-text"))
    parser.add_argument("--without-dwm", action="store_true")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    told: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seeds = [int(seed) for seed in given.seeds.split(",")]
    kinds = given.noise.split(",")
    for noise, seed in itertools.product(kinds, seeds):
        work = given.work.absolute() / f"{noise}-{seed}"
        for method, found in measured(given.corpus, work, noise, seed, lessons=not given.without_dwm).items():
            told[method][f"{noise} shuffled"].append(found[0])
            told[method][f"copies, {noise} shuffled"].append(found[1])
            print(f"seed {seed} {noise}: {method} {found[0]:.3f} {found[1]:.3f}", file=sys.stderr, flush=True)
    columns = [f"{noise} shuffled" for noise in kinds] + [f"copies, {noise} shuffled" for noise in kinds]
    lines = [f"| AUROC | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {method} | {' | '.join(spread(row[c]) for c in columns)} |" for method, row in told.items()]
    print("\n".join(lines))
    if given.table:
        given.table.write_text("\n".join(lines) + "\n")
    return 0


def measured(corpus: Path, work: Path, noise: str, seed: int, *, lessons: bool) -> dict[str, tuple[float, float]]:
    """By method: AUROC of clean rows above noisy ones, and of clean rows with a copy above those without.

    lessons: whether DWM is among them, which takes most of the time.
    """
    work.mkdir(parents=True, exist_ok=True)
    common = [*SETTINGS, *write_rows(corpus, work, noise, seed), f"seed={seed}"]
    common += [f"paths.pools={work}/pools", f"paths.outputs={work}/out", f"paths.store={work}/store"]

    def scored(name: str, *settings: str) -> list[float]:
        folder = score(compose_settings(*common, *settings, f"run_dir={work}/{name}"))
        found: list[float] = pq.read_table(folder / "scores.parquet")["score"].to_pylist()
        return found

    warm = train(compose_settings(*common, "method=natural"), work / "warm")
    export(warm, work / "model")
    under = ["model.pretrained=true", f"model.path={work}/model"]
    names = ids_of_rows(make_pool(compose_settings(*common), progress=False))
    scores = {
        kind: scored(kind, "method=lqs", f"strategies.lqs.by.kind={kind}", f"strategies.lqs.by.run={warm}", *DESCENT)
        for kind in ("lqs", "pds")
    }
    few = [f"strategies.lqs.by.scorer.{x}" for x in LEARNT]
    by_warm = f"strategies.lqs.by.run={warm}"
    scores["lqs, learnt from a third of the rows"] = scored("learnt", "method=lqs", by_warm, *DESCENT, *few)
    scores["low loss"] = [-x for x in scored("loss", *under, "score.by=${signal.loss}")]
    trigrams = "score.by={_target_: regimen.signals.kneser_ney.NgramPerplexity}"
    scores["low perplexity (trigrams of words)"] = [-x for x in scored("perplexity", trigrams)]
    if lessons:
        scores["DWM, mean weight"] = weights(common, work, len(names))
    return {method: told(names, found) for method, found in scores.items()}


def weights(common: Sequence[str], work: Path, rows: int) -> list[float]:
    """Mean weights of rows from the second stage on."""
    SEEN.clear()
    watched = f"strategies.dwm._target_={Watched.__module__}.Watched"
    train(compose_settings(*common, "method=dwm", watched, *LESSONS), work / "dwm")
    sums, counts = [0.0] * rows, [0] * rows
    for ids, given in SEEN:
        for row, weight in zip(ids.tolist(), given.tolist(), strict=True):
            sums[row], counts[row] = sums[row] + weight, counts[row] + 1
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]


def told(names: Sequence[str], scores: Sequence[float]) -> tuple[float, float]:
    """AUROC of clean rows above noisy ones, and of clean rows with a copy above those without."""
    by: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(names, scores, strict=True):
        by[name.partition("-")[0]].append(value)
    return auroc(by["clean"] + by["twice"], by["noisy"]), auroc(by["twice"], by["clean"])


def write_rows(corpus: Path, work: Path, noise: str, seed: int) -> list[str]:
    """Writes the rows and the target set; returns the settings that name them."""
    rng = random.Random(seed)
    records: list[dict[str, Any]] = []
    target: list[dict[str, Any]] = []
    for domain in DOMAINS:
        for number, text in enumerate(texts(corpus, domain, "train", rng)[:ROWS]):
            kind = "noisy" if number < ROWS // 3 else "twice" if number < ROWS // 3 + COPIES else "clean"
            row = {"text": shuffled(text, noise, rng) if kind == "noisy" else text, "domain": domain}
            records.append({**row, "id": f"{kind}-{domain}-{number}"})
            if kind == "twice":
                records.append({**row, "text": f"{text[:-1]}#", "id": f"{kind}-{domain}-{number}-copy"})
        held = texts(corpus, domain, "validation", rng)[:TARGET]
        target += [{"id": f"target-{domain}-{i}", "text": text, "domain": domain} for i, text in enumerate(held)]
    rng.shuffle(records)
    rows, aim = write(records, work / "rows.jsonl"), write(target, work / "target.jsonl")
    return [f"dataset.path={rows}", f"dataset.target.path={aim}"]


def texts(corpus: Path, domain: str, split: str, rng: random.Random) -> list[str]:
    """One piece of `LENGTH` ASCII characters from each document that has one, in random order."""
    with gzip.open(corpus / f"{domain}.{split}.jsonl.gz", "rt") as file:
        documents = [" ".join(json.loads(line)["text"].split()) for line in file]
    found = [d[start : start + LENGTH] for d in documents if len(d) > 2 * LENGTH for start in [rng.randrange(LENGTH)]]
    found = [text for text in found if text.isascii()]
    rng.shuffle(found)
    return found


def shuffled(text: str, noise: str, rng: random.Random) -> str:
    """The same bytes, or the same words, in another order."""
    parts = list(text) if noise == "tokens" else text.split(" ")
    rng.shuffle(parts)
    return ("" if noise == "tokens" else " ").join(parts)


if __name__ == "__main__":
    sys.exit(main())
