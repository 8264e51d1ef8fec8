"""What is planted in real text is found by the methods that claim to find it: a task, near-copies, wrong answers.

Bounds lie well below what these sizes reach, which is noted beside them; benchmarks/selection.py and
benchmarks/noise.py measure the same at larger ones. Models are tiny and trained here, since no pretrained one is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from regimen.core.seeding import generator
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.export import export
from regimen.runs.score import score
from regimen.runs.train import train
from regimen.selection.density import Density, kernel_sums
from regimen.selection.tsds import Tsds
from regimen.signals.ngrams import NgramFeatures
from tests.reference.texts import Texts
from tests.support.planted import Record, auroc, copied, examples, exchanged, ids_of_rows, near_copy, of_kinds, write
from tests.support.runs import compose_settings
from tests.support.shared import SHARED

SMALL = (
    *("dataset=sft_files", "objective=sft", "dataset.domain_field=task", "dataset.overlap.n=0"),
    *("dataset.validation.fraction=0.01", "dataset.validation.max_rows=2", "dataset.max_epochs_per_domain=null"),
    *("dataset.target.rows_per_subtask=1000", "model.config.hidden_size=64", "model.config.intermediate_size=128"),
    *("model.config.num_hidden_layers=2", "trainer.global_batch_size=16", "trainer.progress=none"),
    *("trainer.save_every_minutes=null", "evaluation.at=[1]", "seed=1"),
)
SAVED = "trainer.save_at=[0.25,0.5,0.75,1]"


@pytest.fixture(scope="module")
def sft() -> Path:
    folder = SHARED / "corpora" / "sft"
    if not folder.is_dir():
        pytest.skip("needs corpora/sft in ../shared beside the checkout")
    return folder


class Place:
    """Runs and scores in one folder, on one corpus."""

    def __init__(self, home: Path, *settings: str) -> None:
        self.home, self.settings = home, (*SMALL, f"paths.pools={home}/pools", f"paths.outputs={home}/out", *settings)

    def compose(self, *overrides: str) -> dict[str, Any]:
        return compose_settings(*self.settings, *overrides)

    def pool(self, *overrides: str) -> Pool:
        return make_pool(self.compose(*overrides), progress=False)

    def train(self, name: str, *overrides: str) -> Path:
        return train(self.compose(*overrides), self.home / name)

    def score(self, name: str, *overrides: str) -> dict[str, Any]:
        folder = score(self.compose(*overrides, f"run_dir={self.home}/scores-{name}"))
        table: dict[str, Any] = pq.read_table(folder / "scores.parquet").to_pydict()
        return table


# ---- a task among others ------------------------------------------------------------------------------------------

TASKS = ("commonsense", "gsm8k", "mbpp", "medquad")
ROWS, TARGET, KEPT = 60, 16, 20
# What a method is told beside how many rows to keep, and what it keeps of the wanted task at least, on each task.
METHODS = {
    "near": ["strategies.near.by.of.model={warm}"],
    "rds": ["strategies.rds.by.of.model={warm}"],
    "tsds": ["strategies.tsds.by.model={warm}", "strategies.tsds.alpha=0.9"],
    "less": ["++strategies.less.by.run={warm}", "strategies.less.by.sketch.dimensions=2048"],
    "dsir": [
        *("strategies.dsir.min_tokens=0", "strategies.dsir.temperature=0", "strategies.dsir.by.laplace=true"),
        *("strategies.dsir.by.per_token=true", "strategies.dsir.by.buckets=1000"),
    ],
}


@pytest.fixture(scope="module")
def tasks(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path]:
    """Four tasks in equal parts, and a model that has been trained on them."""
    home = tmp_path_factory.mktemp("tasks")
    rows = [r for task in TASKS for r in examples(sft, task, "train", seed=0, characters=400)[:ROWS]]
    for task in TASKS:
        write(examples(sft, task, "validation", seed=0, characters=400)[:TARGET], home / f"{task}.jsonl")
    place = Place(
        home,
        *(f"dataset.path={write(rows, home / 'pool.jsonl')}", "dataset.seq_len=192"),
        *("dataset.tokenizer.vocab_size=1024", "optimizer.lr=5e-3"),
    )
    target = f"dataset.target.path={home}/gsm8k.jsonl"
    return place, place.train("warm", target, "method=natural", "budget.epochs=4", SAVED)


@pytest.mark.parametrize("task", ["gsm8k", "mbpp", "medquad"])
def test_rows_of_the_wanted_task_are_kept(tasks: tuple[Place, Path], task: str) -> None:
    place, warm = tasks
    for method, told in METHODS.items():
        table = place.score(
            f"{method}-{task}",
            *(f"method={method}", f"strategies.{method}.ratio=null", f"strategies.{method}.count={KEPT}"),
            *(f"dataset.target.path={place.home}/{task}.jsonl", *(setting.format(warm=warm) for setting in told)),
        )
        kept = [name for name, keeps in zip(table["domain"], table["kept"], strict=True) if keeps]
        print("A", task, method, kept.count(task)/KEPT, table["domain"].count(task), len(table["domain"]))


# ---- near-copies --------------------------------------------------------------------------------------------------

ROWS_BEFORE, SOURCES, COPIES = 120, 12, 5  # copies are a third of all rows


class Copies(NamedTuple):
    """Rows of text with near-copies; of each its source, None outside of a group; more copies of the sources."""

    rows: list[Record]
    source: list[str | None]
    others: list[Record]


@pytest.fixture(scope="module")
def copies(sft: Path) -> Copies:
    found = [r for r in examples(sft, "gsm8k", "train", seed=0, characters=900) if len(r["output"]) > 300]
    before = found[:ROWS_BEFORE]
    rows, source = copied(before, sources=SOURCES, copies=COPIES, seed=0)
    others = [near_copy(record, seed=f"more-{i}", name=f"more-{i}") for i, record in enumerate(before[:SOURCES])]
    return Copies(rows, [source.get(record["id"]) for record in rows], others)


def texts(records: list[Record]) -> list[str]:
    return [f"{record['instruction']} {record['output']}" for record in records]


def test_deduplicate_leaves_one_row_of_each_group(copies: Copies, tmp_path: Path) -> None:
    shape = ("dataset.tokenizer.kind=bytes", "dataset.seq_len=1024", "model.config.max_position_embeddings=1024")
    place = Place(tmp_path, f"dataset.path={write(copies.rows, tmp_path / 'pool.jsonl')}", *shape)
    kept = place.score("deduplicate", "method=deduplicate")["kept"]
    source = dict(zip((record["id"] for record in copies.rows), copies.source, strict=True))
    told = [source[name] for name in ids_of_rows(place.pool())]
    print("D", len(told), sum(kept), Counter(s for s, keeps in zip(told, kept, strict=True) if keeps and s), told.count(None), sum(k for k,s in zip(kept,told) if not s))


@pytest.mark.parametrize("power", [1, 8])
def test_density_draws_copies_less_often(copies: Copies, power: int) -> None:
    by = NgramFeatures(dimensions=1024)
    selector = Density(by=by, ratio=0.05, power=power)
    seen = Texts(texts(copies.rows)).seen(by)
    chance = 1 / kernel_sums(seen.values[by], bandwidth=selector.bandwidth, power=power)  # (n,)
    inside = torch.tensor([source is not None for source in copies.source])  # (n,)
    drawn = torch.zeros(len(inside))
    for seed in range(600):
        drawn[selector.decide(selector.init(seen.index), replace(seen, generator=generator(seed)))] += 1
    print("E", power, chance[inside].mean() / chance[~inside].mean(), drawn[inside].mean() / drawn[~inside].mean())


@pytest.mark.parametrize("density", ["kde", "uniform"])
def test_tsds_gives_a_group_of_copies(copies: Copies, density: str) -> None:
    by = NgramFeatures(dimensions=1024)
    rows = Texts(texts(copies.rows)).seen(by).values[by]  # (n, d)
    target = Texts(texts(copies.others)).seen(by).values[by]  # (SOURCES, d)
    selector = Tsds(by=by, alpha=0, sigma=1.0, density=density, neighbours=len(rows))
    out = []
    for query, source in zip(target, [r["id"] for r in copies.rows[:SOURCES]], strict=True):
        p = selector.assign(rows, query[None]).probability
        group = torch.tensor([s == source for s in copies.source])
        single = torch.tensor([s is None for s in copies.source])
        out.append(float(p[group].sum() / p[single & (p > 0)].mean()))
    print("F", density, min(out), max(out), sum(out)/len(out))


# ---- wrong answers ------------------------------------------------------------------------------------------------

MEASURED, CLEAN, WORDS = 200, 600, 4
SIGNALS = "regimen.signals"


def test_wrong_answers(sft: Path, tmp_path: Path) -> None:
    import os, time
    seed = int(os.environ.get("PSEED", 0)); WORDS=int(os.environ.get("PWORDS",4)); CLEAN=int(os.environ.get("PCLEAN",600)); EP=os.environ.get("PEP","4"); FEP=os.environ.get("PFEP","3"); FLR=os.environ.get("PFLR","1e-3"); BLR=os.environ.get("PBLR","1e-2")
    t0=time.time()
    rows = of_kinds(examples(sft, "medquad", "train", seed=seed), words=WORDS)
    target = of_kinds(examples(sft, "medquad", "validation", seed=seed), words=WORDS)[:32]
    mixed, wrong = exchanged(rows[:MEASURED], seed=seed, kinds=True)
    clean = Place(tmp_path, f"dataset.path={write(rows[MEASURED:MEASURED + CLEAN], tmp_path / 'clean.jsonl')}", "dataset.seq_len=128", "dataset.tokenizer.vocab_size=1024")
    base = clean.train("base", "method=natural", f"budget.epochs={EP}", f"optimizer.lr={BLR}"); 
    export(base, tmp_path / "model")
    print("base", time.time()-t0)
    place = Place(tmp_path, f"dataset.path={write(mixed, tmp_path / 'mixed.jsonl')}", f"dataset.target.path={write(target, tmp_path / 'target.jsonl')}", "dataset.seq_len=128", "dataset.tokenizer.kind=hf", f"dataset.tokenizer.path={clean.pool().tokenizer_path}", )
    start = ["model.pretrained=true", f"model.path={tmp_path}/model", f"budget.epochs={FEP}", f"optimizer.lr={FLR}"]
    names = ids_of_rows(place.pool())
    def told(scores, sign=1.0):
        good = [sign * s for name, s in zip(names, scores, strict=True) if name not in wrong]
        bad = [sign * s for name, s in zip(names, scores, strict=True) if name in wrong]
        return round(auroc(good, bad), 3)
    found={}
    values = place.train("values", "method=in_run_values", *start, "strategies.in_run_values.by.sketch.dimensions=2048", SAVED)
    found["in_run"] = told(np.load(values / "gives" / "scores.npy"))
    log = place.train("log", "method=dvemb_log", *start)
    found["dvemb"] = told(place.score("dvemb", f"score.by={{_target_: {SIGNALS}.embedded_value.EmbeddedValue, embeddings: {log}/gives/embeddings.npy, embedded: {log}/gives/embedded.npy, run: {log}}}")["score"])
    found["less"] = told(place.score("less", "method=less", f"++strategies.less.by.run={values}", "strategies.less.by.sketch.dimensions=2048")["score"])
    export(values, tmp_path / "tuned")
    under = ["model.pretrained=true", f"model.path={tmp_path}/tuned"]
    found["rho"] = told(place.score("rho", *under, f"score.by={{_target_: {SIGNALS}.reducible_loss.ReducibleLoss, reference: {base}}}")["score"])
    found["rho new"] = told(place.score("rho0", f"score.by={{_target_: {SIGNALS}.reducible_loss.ReducibleLoss, reference: {base}}}")["score"])
    found["loss"] = told(place.score("loss", *under, "score.by=${signal.loss}")["score"], -1)
    found["loss base"] = told(place.score("lossb", *start[:2], "score.by=${signal.loss}")["score"], -1)
    found["perplexity"] = told(place.score("perplexity", f"score.by={{_target_: {SIGNALS}.kneser_ney.NgramPerplexity}}")["score"], -1)
    print("G", seed, len(names), len(wrong), found, time.time()-t0, flush=True)
