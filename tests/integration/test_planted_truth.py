"""What is planted in real text is found by the methods that claim to find it: a task, near-copies, wrong answers.

Bounds lie well below what these sizes reach, which is noted beside them; benchmarks/selection.py and
benchmarks/noise.py measure the same at larger ones. Models are tiny and trained here, since no pretrained one is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.strategy import Observation
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.export import export
from regimen.runs.score import score
from regimen.runs.train import train
from regimen.selection.density import Density, kernel_sums
from regimen.selection.tsds import Tsds
from regimen.signals.ngrams import NgramFeatures
from tests.reference.observations import seeing
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

SINGLES, SOURCES, COPIES = 100, 10, 5
GROUP = COPIES + 1


@pytest.fixture(scope="module")
def copies(sft: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[str | None], Tensor]:
    """Rows a third of which are near-copies; the source of each row of a group; and vectors (n, d) of its n-grams."""
    home = tmp_path_factory.mktemp("copies")
    found = [r for r in examples(sft, "gsm8k", "train", seed=0, characters=900) if len(r["output"]) > 300]
    rows, source = copied(found[:SINGLES], sources=SOURCES, copies=COPIES, seed=0)
    place = Place(home, f"dataset.path={write(rows, home / 'pool.jsonl')}", "dataset.tokenizer.kind=bytes",
        "dataset.seq_len=1024", "model.config.max_position_embeddings=1024")
    pool = place.pool()
    return place, [source.get(name) for name in ids_of_rows(pool)], torch.empty(0)


def test_copies(copies) -> None:
    place, source, _ = copies
    table = place.score("dedup", "method=deduplicate")
    kept = table["kept"]
    print("B rows", len(kept), sum(s is not None for s in source), "kept", sum(kept), "singles kept", sum(k for k,s in zip(kept,source) if s is None), "groups kept", [ (s, k) for k,s in zip(kept,source) if s and k])


# ---- wrong answers ------------------------------------------------------------------------------------------------
