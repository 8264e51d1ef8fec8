"""SIGKILL at a random step, then the same command: the run ends as if nothing had happened.

Once per kind of strategy by default; every method file under `make test-all`.
"""

from __future__ import annotations

import json
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
from tests.support.runs import SMALL, lines, run, story, write_corpus

STEPS, SAVE = 90, 7
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


MEASURED = (
    *("method=less", "++strategies.less.by.run=null", "strategies.less.by.sketch.adam=none"),
    *("strategies.less.by.sketch.dimensions=64", "strategies.less.ratio=0.2", "dataset.seq_len=16"),
    *("dataset.target={path: null, from: [sums], rows_per_subtask: 4, seed: 0}", "trainer.sweep_batch_size=2"),
)


def test_a_killed_measurement_goes_on_where_it_stopped(home: Path, tmp_path: Path) -> None:
    """Gradients of thousands of rows before training: what was measured is kept, and the rest changes nothing."""
    corpus = write_corpus(tmp_path / "corpus", documents=75)
    whole = run(corpus, home, *MEASURED, f"run_dir={tmp_path}/whole", f"paths.store={tmp_path}/store-whole")
    store, killed = tmp_path / "store", tmp_path / "killed"
    fixed = [f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.store={store}", f"run_dir={killed}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *MEASURED]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=home)
    deadline = time.monotonic() + 120
    while not list(store.glob("measurements/*/progress.json")):
        assert process.poll() is None and time.monotonic() < deadline, "it was not killed half-way"
        time.sleep(0.002)
    process.kill()
    process.communicate()
    (progress,) = store.glob("measurements/*/progress.json")
    done, total = json.loads(progress.read_text())["rows"], whole_rows(whole)
    assert 0 < done < total
    resumed = run(corpus, home, *MEASURED, f"run_dir={killed}", f"paths.store={store}")
    decided, expected = ([row for row in lines(f / "record.jsonl") if "digest" in row] for f in (resumed, whole))
    assert [row["digest"] for row in decided] == [row["digest"] for row in expected]
    assert_equal_weights(checkpoints(resumed)[-1], checkpoints(whole)[-1])
    found, all_now = (json.loads((f / "summary.json").read_text())["flops"]["measuring"] for f in (resumed, whole))
    assert all_now < found < 1.01 * all_now, "all rows are charged, and the target's gradients a second time"
    assert not progress.exists()


def whole_rows(folder: Path) -> int:
    """Rows that the selector of a finished run could choose from."""
    (line,) = [row for row in lines(folder / "record.jsonl") if row["kind"] == "selector"]
    return int(line["of"])
