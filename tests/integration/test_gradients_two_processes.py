"""Two gloo processes measure the gradients that one does, and training under DDP does not notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import SMALL, lines, write_corpus

pytestmark = pytest.mark.processes

TWO = ("trainer=ddp", "trainer.accelerator=cpu")
SHORT = ("budget.steps=4", "evaluation.at=[1]", "+model.config.attention_dropout=0.2", "trainer.log_every=1")
BOTH = (
    *("method=[doge_proxy,pike]", "~strategies.uniform", "strategies.pike.when.steps=2", "strategies.pike.zeta1=0.3"),
    *("strategies.doge_proxy.mu=0.001", "trainer.micro_batch_size=2", "trainer.sweep_batch_size=2"),
    "strategies.pike.rows_per_domain=3",  # an odd number: one rank has a row that counts nothing
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus")
    return home


def regimen(home: Path, name: str, *overrides: str) -> list[dict]:
    """Train in processes of their own; returns the record."""
    fixed = (f"dataset.path={home}/corpus", f"paths.pools={home}/pools", f"run_dir={home}/{name}")
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *SHORT, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return lines(home / name / "record.jsonl")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def test_gram_and_moments_are_those_of_one_process(home: Path) -> None:
    """Without dropout the two runs train on the same; what the gradients decide must then agree."""
    plain = (*BOTH, "model.config.attention_dropout=0.0")
    one, two = regimen(home, "one", *plain), regimen(home, "two", *plain, *TWO)
    for kind, count in (("weighter", 4), ("mixer", 2)):
        mixtures = [[row["mixture"] for row in record if row["kind"] == kind] for record in (one, two)]
        assert len(mixtures[0]) == len(mixtures[1]) == count
        for a, b in zip(*mixtures, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
        assert max(abs(share - 1 / 3) for share in mixtures[0][-1].values()) > 0.01, "the gradients decided something"
    assert losses(home / "one") == pytest.approx(losses(home / "two"), abs=1e-5)


def test_training_under_ddp_is_the_same_to_the_bit(home: Path) -> None:
    """PiKE with steps of 0 measures and decides the uniform mixture; with dropout, and gradients half accumulated."""
    drawn = ("strategies.{}.draw=fixed_counts", "strategies.{}.when.steps=1", "strategies.{}.zeta1=0")
    still = (drawn[0].format("pike"), drawn[1].format("pike"), drawn[2].format("pike"), "strategies.pike.zeta2=0")
    regimen(home, "measured", "method=pike", *still, *TWO, "trainer.micro_batch_size=2")
    regimen(home, "plain", "method=uniform", drawn[0].format("uniform"), *TWO, "trainer.micro_batch_size=2")
    assert losses(home / "measured") == losses(home / "plain")
