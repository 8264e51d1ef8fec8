"""SIGKILL in the middle of a long measurement of all rows: the next run goes on from there, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from regimen.training.descending import FlatModel
from tests.support.runs import SMALL, lines, run, write_corpus

pytestmark = pytest.mark.processes

TIMES = 6
LQS = (
    *("method=lqs", f"strategies.lqs.by.descent.steps={TIMES}", "strategies.lqs.by.descent.annotate_every=1"),
    *("strategies.lqs.by.descent.lr=0.1", "strategies.lqs.by.descent.backend=loop", "budget.steps=2"),
    *("dataset.target={path: null, from: [sums], rows_per_subtask: 3, seed: 0}", "trainer.threads=1"),
)


def killed(command: list[str], home: Path, half: Path, pattern: str) -> Path:
    """Start a run and kill it as soon as a file that matches is in `half`. Returns that file."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=home)
    deadline = time.monotonic() + 120
    while not (found := list(half.glob(pattern))):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "it never came half-way"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return found[0]


def values(store: Path) -> np.ndarray:
    (path,) = store.glob("measurements/*/values.npy")
    return np.load(path)


def decisions(folder: Path) -> list[str]:
    return [row["digest"] for row in lines(folder / "record.jsonl") if "digest" in row]


def measuring(folder: Path) -> float:
    return float(json.loads((folder / "summary.json").read_text())["flops"]["measuring"])


def test_a_killed_walk_back_goes_on_from_where_rows_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", documents=20), tmp_path / "store"
    whole = run(corpus, tmp_path, *LQS, f"run_dir={tmp_path}/whole", f"paths.store={tmp_path}/store-whole")
    folder = tmp_path / "killed"
    fixed = [f"dataset.path={corpus}", f"paths.pools={tmp_path}/pools", f"paths.store={store}", f"run_dir={folder}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *LQS]
    kept = killed(command, tmp_path, store, "measurements/*/halfway/descent-*.pt")
    state = torch.load(kept, weights_only=True)["state"]
    assert 0 < state["time"] <= TIMES and len(state["columns"]) == TIMES - state["time"]

    asked: list[int] = []
    products = FlatModel.products

    def counted(self: FlatModel, *given: object, **options: object) -> torch.Tensor:
        found = products(self, *given, **options)
        asked.append(len(found))
        return found

    monkeypatch.setattr(FlatModel, "products", counted)
    resumed = run(corpus, tmp_path, *LQS, f"run_dir={folder}", f"paths.store={store}")
    mine = values(store)
    assert np.array_equal(mine, values(tmp_path / "store-whole"))
    assert decisions(resumed) == decisions(whole)
    assert sum(asked) == len(mine) * state["time"], "only what was not measured before the kill"
    assert measuring(resumed) == pytest.approx(measuring(whole), rel=1e-12), "charged once"
    assert not list(store.rglob("*halfway*")) and not list(store.rglob("*.tmp"))


SCORER = ("rows=120", "epochs=12", "batch_rows=4", "lr=1e-2", "model=own")


def test_a_killed_scorer_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path / "corpus", documents=20), tmp_path / "store"
    lqs = [*LQS, "strategies.lqs.by.descent.steps=2", *(f"strategies.lqs.by.scorer.{x}" for x in SCORER)]
    whole = run(corpus, tmp_path, *lqs, f"run_dir={tmp_path}/whole", f"paths.store={tmp_path}/store-whole")
    folder = tmp_path / "killed"
    fixed = [f"dataset.path={corpus}", f"paths.pools={tmp_path}/pools", f"paths.store={store}", f"run_dir={folder}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *lqs]
    kept = killed(command, tmp_path, store, "measurements/*/halfway/scorer-*.pt")
    assert 0 < torch.load(kept, weights_only=True)["state"]["epoch"] < 12
    resumed = run(corpus, tmp_path, *lqs, f"run_dir={folder}", f"paths.store={store}")
    assert np.array_equal(values(store), values(tmp_path / "store-whole"))
    assert decisions(resumed) == decisions(whole)
    assert measuring(resumed) == pytest.approx(measuring(whole), rel=1e-12), "charged once"
    assert not list(store.rglob("*halfway*")) and not list(store.rglob("*.tmp"))
