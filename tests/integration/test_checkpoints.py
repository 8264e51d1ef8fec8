"""When checkpoints are written, how many stay, and what a damaged one says."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from regimen.core.errors import ConfigError, RunError
from regimen.runs.experiment import make_experiment, make_pool
from regimen.training.callbacks.checkpoint import checkpoints, random_state, restore_random_state, step_of
from regimen.training.loader import PlannedLoader
from regimen.training.tensors import externalise, internalise
from tests.support.runs import run, settings_of, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=300)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_minutes_save_and_old_ones_go(corpus: Path, home: Path) -> None:
    kept = ("trainer.save_every_minutes=1e-6", "trainer.keep_checkpoints=2")
    folder = run(corpus, home, *kept, f"run_dir={home}/minutes")
    assert [step_of(path) for path in checkpoints(folder)] == [7, 8]


def test_the_end_is_always_saved(corpus: Path, home: Path) -> None:
    folder = run(corpus, home, f"run_dir={home}/end")
    assert [step_of(path) for path in checkpoints(folder)] == [8]


def test_a_checkpoint_that_was_cut_off_is_passed_over(corpus: Path, home: Path) -> None:
    wanted = ("trainer.save_every_steps=3", "trainer.keep_checkpoints=null", f"run_dir={home}/cut")
    folder = run(corpus, home, *wanted)
    expected = torch.load(checkpoints(folder)[-1], weights_only=True)["state_dict"]
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    for path in checkpoints(folder)[1:]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert [step_of(path) for path in checkpoints(folder)] == [3]
    again = torch.load(checkpoints(run(corpus, home, *wanted))[-1], weights_only=True)["state_dict"]
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_a_large_order_is_stored_once_beside_the_checkpoints(corpus: Path, home: Path) -> None:
    size = ("trainer.global_batch_size=200", "trainer.micro_batch_size=50", "budget.steps=6")
    saves = ("trainer.save_every_steps=1", "trainer.keep_checkpoints=null")
    folder = run(corpus, home, "method=folding", *size, *saves, f"run_dir={home}/large")
    stored = {path: torch.load(path, weights_only=True) for path in (folder / "plans").iterdir()}
    assert len(stored) == 3, "the order, and the ids and scores that the record follows it by"
    (order,) = (path for path, of in stored.items() if not of.is_floating_point() and bool((of.diff() < 0).any()))
    assert all(len(of) == 1200 for of in stored.values())
    for path in checkpoints(folder)[3:]:
        path.unlink()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    with order.open("r+b") as file:
        file.seek(-400, os.SEEK_END)
        file.write(b"damaged")
    with pytest.raises(RunError, match="missing or damaged"):
        run(corpus, home, "method=folding", *size, *saves, f"run_dir={folder}")


def test_nested_tensors_come_back(tmp_path: Path) -> None:
    state = {"a": {"large": torch.arange(5000), "small": torch.arange(3)}, "b": None, "c": 1.5}
    back = internalise(externalise(state, tmp_path), tmp_path)
    assert torch.equal(back["a"]["large"], state["a"]["large"])
    assert torch.equal(back["a"]["small"], state["a"]["small"])
    assert (back["b"], back["c"]) == (None, 1.5)


def test_a_checkpoint_inside_an_accumulation_window_is_refused(corpus: Path, home: Path) -> None:
    settings = settings_of(corpus, home)
    pool = make_pool(settings, progress=False)
    stream = make_experiment(settings, pool).stream()
    loader = PlannedLoader(pool.train, stream, accumulation=2, plans=home / "plans")
    batches = iter(loader)
    next(batches)
    half_way = loader.state_dict()
    next(batches)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ConfigError, match="inside an accumulation window"):
        loader.load_state_dict(half_way)


def test_all_random_states_come_back() -> None:
    random.gauss(0, 1)  # leaves a cached second value
    saved = random_state()
    first = random.gauss(0, 1), random.random(), float(np.random.rand()), float(torch.rand(()))
    restore_random_state(saved)
    assert (random.gauss(0, 1), random.random(), float(np.random.rand()), float(torch.rand(()))) == first
