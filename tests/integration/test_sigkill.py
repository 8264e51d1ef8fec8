"""SIGKILL at a random step, then the same command: the run ends as if nothing had happened.

Once per kind of strategy by default; every method file under `make test-all`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints, step_of
from tests.contract.test_methods import METHODS, assert_equal_weights, overrides_of
from tests.support.runs import SMALL, run, story

STEPS, SAVE = 150, 7
ONE_PER_KIND = ("loss_selection", "odm", "folding", "loss_weighting")
COMMON = (
    *(f"budget.steps={STEPS}", f"trainer.save_every_steps={SAVE}", "trainer.micro_batch_size=4"),
    *("+model.config.attention_dropout=0.1", "evaluation.at=[0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1]"),
    *("dataset.max_epochs_per_domain=null", "trainer.threads=1"),
)


def kill_at(step: int, folder: Path, corpus: Path, home: Path, overrides: list[str]) -> None:
    """Start the run as a user would and kill it with SIGKILL when it has reached `step`."""
    fixed = [f"dataset.path={corpus}", f"paths.pools={home}/pools", f"run_dir={folder}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *COMMON, *overrides]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=home)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    try:
        while not metrics.is_file() or f'"step": {step}, "split": "train"' not in metrics.read_text():
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "the run did not get far enough"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "method",
    [*ONE_PER_KIND, *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m not in ONE_PER_KIND)],
)
def test_a_killed_run_goes_on_exactly(method: str, corpus: Path, home: Path, tmp_path: Path) -> None:
    overrides = overrides_of(method, corpus, home)
    whole = run(corpus, home, *COMMON, *overrides, f"run_dir={tmp_path}/whole")
    step = random.randint(SAVE + 1, STEPS // 2)
    killed = tmp_path / "killed"
    kill_at(step, killed, corpus, home, overrides)
    reached = step_of(checkpoints(killed)[-1])
    assert reached < STEPS, "it was killed before its end"
    resumed = run(corpus, home, *COMMON, *overrides, f"run_dir={killed}")
    assert story(resumed) == story(whole), f"killed after step {step}, resumed from {reached}"
    assert_equal_weights(checkpoints(resumed)[-1], checkpoints(whole)[-1])
    assert not list(killed.rglob("*.tmp"))
