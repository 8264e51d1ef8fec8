"""What is planted in real text is found by the methods that claim to find it: a task, near-copies, wrong answers.

Bounds lie well below what these sizes reach, which is noted beside them; benchmarks/selection.py and
benchmarks/noise.py measure the same at larger ones. Models are tiny and trained here, since no pretrained one is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
SAVED = "trainer.save_at=[0.5,1]"


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

TASKS, WANTED = ("commonsense", "gsm8k", "mbpp", "medquad"), "gsm8k"
ROWS, TARGET, KEPT = 60, 16, 20
# Of the rows kept, and a quarter of the pool is of the task. 0.8 (TSDS, which draws) to 1 is reached, as it is for mbpp
# and medquad, with 0.95 to 1.
LEAST = 0.6
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
    rows = [r for task in TASKS for r in examples(sft, task, "train", seed=0, characters=350)[:ROWS]]
    target = examples(sft, WANTED, "validation", seed=0, characters=350)[:TARGET]
    place = Place(
        home,
        *(f"dataset.path={write(rows, home / 'pool.jsonl')}", "dataset.seq_len=160"),
        *("dataset.tokenizer.vocab_size=1024", "optimizer.lr=5e-3"),
        f"dataset.target.path={write(target, home / 'target.jsonl')}",
    )
    return place, place.train("warm", "method=natural", "budget.epochs=4", SAVED)


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_the_wanted_task_are_kept(tasks: tuple[Place, Path], method: str) -> None:
    place, warm = tasks
    told = [setting.format(warm=warm) for setting in METHODS[method]]
    amount = [f"strategies.{method}.ratio=null", f"strategies.{method}.count={KEPT}"]
    table = place.score(method, f"method={method}", *amount, *told)
    kept = [name for name, keeps in zip(table["domain"], table["kept"], strict=True) if keeps]
    assert len(kept) == KEPT and table["domain"].count(WANTED) < 0.3 * len(table["domain"])
    assert kept.count(WANTED) >= LEAST * KEPT


# ---- near-copies --------------------------------------------------------------------------------------------------

ROWS_BEFORE, SOURCES, COPIES = 120, 12, 5  # copies are a third of all rows
GROUP, DRAWS = COPIES + 1, 200


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
    assert len(told) - told.count(None) > len(told) / 3
    assert all(keeps for keeps, name in zip(kept, told, strict=True) if name is None), "rows without copies stay"
    left = Counter(name for keeps, name in zip(kept, told, strict=True) if keeps and name is not None)
    assert set(left) == {name for name in told if name is not None}, "no group is lost"
    assert sum(left.values()) <= len(left) + 1, "all copies are found, but for one that the estimate may miss"


@pytest.mark.parametrize(
    ("kernel", "ratio"),
    [({"bandwidth": 0.5, "power": 1}, 0.91), ({"bandwidth": 2.0, "power": 12}, 0.32)],
    ids=["default", "narrow"],
)
def test_density_draws_copies_less_often(copies: Copies, kernel: dict[str, Any], ratio: float) -> None:
    """As often as their kernel density says; a kernel that reaches all rows, as the default one, hardly tells them."""
    by = NgramFeatures(dimensions=1024)
    selector = Density(by=by, ratio=0.05, **kernel)
    seen = Texts(texts(copies.rows)).seen(by)
    inside = torch.tensor([source is not None for source in copies.source])  # (n,)
    chance = 1 / kernel_sums(seen.values[by], **kernel)  # (n,)
    expected = float(chance[inside].mean() / chance[~inside].mean())
    drawn = torch.zeros(len(inside))  # (n,)
    for seed in range(DRAWS):
        drawn[selector.decide(selector.init(seen.index), replace(seen, generator=generator(seed)))] += 1
    assert expected == pytest.approx(ratio, abs=0.02)
    assert float(drawn[inside].mean() / drawn[~inside].mean()) == pytest.approx(expected, abs=0.08)


@pytest.mark.parametrize(("density", "least", "most"), [("kde", 1, 1.1), ("uniform", GROUP - 1e-9, GROUP + 1e-9)])
def test_tsds_gives_a_group_of_copies_the_mass_of_one_row(
    copies: Copies, density: Literal["kde", "uniform"], least: float, most: float
) -> None:
    """With kernel densities; without them a group of m rows has the mass of m. Target rows are copies too."""
    by = NgramFeatures(dimensions=1024)
    rows, target = (Texts(texts(part)).seen(by).values[by] for part in (copies.rows, copies.others))  # (n, d), (M, d)
    selector = Tsds(by=by, alpha=0, sigma=1.0, density=density, neighbours=len(rows))
    alone = torch.tensor([source is None for source in copies.source])  # (n,)
    for query, record in zip(target, copies.rows[:SOURCES], strict=True):
        mass = selector.assign(rows, query[None]).probability  # (n,)
        group = torch.tensor([source == record["id"] for source in copies.source])  # (n,)
        assert least <= float(mass[group].sum() / mass[alone & (mass > 0)].mean()) <= most


# ---- wrong answers ------------------------------------------------------------------------------------------------

MEASURED, CLEAN, TARGETS, WORDS = 200, 1000, 32, 4
SEED = 1
# The least AUROC of clean rows against wrong ones; chance is 0.5, with a standard error of 0.04. With this seed 0.98,
# 0.78, 0.71 and 0.73 were reached, and 0.58 by the loss; with three other seeds 0.95 to 0.99, 0.63 to 0.70, 0.61 to
# 0.64 and 0.66 to 0.67, and 0.61 to 0.66 by the loss.
LEAST_AUROC = {"rho": 0.85, "less": 0.6, "in_run_shapley": 0.6, "dvemb": 0.6}


@pytest.fixture(scope="module")
def told(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """AUROC by method. A third of the rows answer another kind of question than they are asked.

    A model learns from clean rows, which makes it RHO-LOSS's reference too, and then goes on with the others: the best
    case for RHO-LOSS, and what LESS and the values need, since an untrained model has no gradient that tells.
    """
    home = tmp_path_factory.mktemp("wrong")
    rows = of_kinds(examples(sft, "medquad", "train", seed=SEED), words=WORDS)
    target = of_kinds(examples(sft, "medquad", "validation", seed=SEED), words=WORDS)[:TARGETS]
    mixed, wrong = exchanged(rows[:MEASURED], seed=SEED, kinds=True)
    clean = Place(
        home,
        f"dataset.path={write(rows[MEASURED : MEASURED + CLEAN], home / 'clean.jsonl')}",
        *("dataset.seq_len=128", "dataset.tokenizer.vocab_size=1024"),
    )
    base = clean.train("base", "method=natural", "budget.epochs=3", "optimizer.lr=1e-2")
    place = Place(
        home,
        f"dataset.path={write(mixed, home / 'mixed.jsonl')}",
        f"dataset.target.path={write(target, home / 'target.jsonl')}",
        *("dataset.seq_len=128", "dataset.tokenizer.kind=hf", f"dataset.tokenizer.path={clean.pool().tokenizer_path}"),
    )
    names = ids_of_rows(place.pool())
    return {
        method: auroc(*_divided(scores, [name in wrong for name in names]))
        for method, scores in _scores(place, base).items()
    }


def _divided(scores: Sequence[float], bad: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Scores of the good rows, and of the bad ones."""
    pairs = list(zip(scores, bad, strict=True))
    return [score for score, wrong in pairs if not wrong], [score for score, wrong in pairs if wrong]


def _scores(place: Place, base: Path) -> dict[str, Sequence[float]]:
    """Scores of all rows by method, high for rows to keep. base: the run that knows clean rows."""

    def by(signal: str, **fields: object) -> str:
        given = "".join(f", {name}: {value}" for name, value in fields.items())
        return f"score.by={{_target_: regimen.signals.{signal}{given}}}"

    go_on = [*_start_from(base), "budget.epochs=3", "optimizer.lr=5e-4"]
    dimensions = "by.sketch.dimensions=2048"
    valued = place.train("values", "method=in_run_values", f"strategies.in_run_values.{dimensions}", SAVED, *go_on)
    log = place.train("log", "method=dvemb_log", *go_on)
    logged = {name: log / "gives" / f"{name}.npy" for name in ("embeddings", "embedded")}
    after = _start_from(valued)
    less = ["method=less", f"++strategies.less.by.run={valued}", f"strategies.less.{dimensions}"]
    return {
        "rho": place.score("rho", *after, by("reducible_loss.ReducibleLoss", reference=base))["score"],
        "less": place.score("less", *less)["score"],
        "in_run_shapley": np.load(valued / "gives" / "scores.npy").tolist(),
        "dvemb": place.score("dvemb", by("embedded_value.EmbeddedValue", **logged, run=log))["score"],
        "loss": [-value for value in place.score("loss", *after, "score.by=${signal.loss}")["score"]],
        "perplexity": [-value for value in place.score("perplexity", by("kneser_ney.NgramPerplexity"))["score"]],
    }


def _start_from(run: Path) -> list[str]:
    """Settings of a run that begins with the model of a finished one."""
    to = export(run, run.with_name(f"{run.name}-model"))
    return ["model.pretrained=true", f"model.path={to}"]


@pytest.mark.parametrize("method", LEAST_AUROC)
def test_wrong_answers_have_low_values(told: dict[str, float], method: str) -> None:
    assert told[method] >= LEAST_AUROC[method]


def test_the_reducible_loss_tells_what_the_loss_does_not(told: dict[str, float]) -> None:
    """Hard rows have a high loss too, and a trigram model does not know which answer belongs to which question."""
    assert told["rho"] > max(told["loss"], told["perplexity"]) + 0.2
