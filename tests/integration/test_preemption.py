"""A real signal to a real run, on one process and on two: saved once, and the same command ends as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints, step_of
from tests.contract.test_methods import assert_equal_weights
from tests.support.cli import environment
from tests.support.runs import SMALL, lines, story

pytestmark = pytest.mark.processes

STEPS = 60
METHOD = (
    *("method=[loss_selection,odm,loss_weighting]", "strategies.loss_selection.when.steps=25"),
    *("strategies.loss_selection.count=64", "strategies.odm.draw_groups=4", "trainer.micro_batch_size=2"),
    *(f"budget.steps={STEPS}", "+model.config.attention_dropout=0.1", "dataset.max_epochs_per_domain=null"),
    "trainer.threads=1",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu")


def start(corpus: Path, home: Path, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    fixed = [f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.store={home}/store", f"run_dir={folder}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *METHOD, *fixed, *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), cwd=home)


def end(process: subprocess.Popen[bytes], *, status: int = 0) -> str:
    said = process.communicate(timeout=200)[1].decode()
    assert process.returncode == status, said
    return said


def await_step(step: int, folder: Path, process: subprocess.Popen[bytes]) -> None:
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() or f'"step": {step}, "split": "train"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, "the run did not get far enough"
        time.sleep(0.002)


def other_rank(of: int) -> int:
    """The process that Lightning started for rank 1."""
    children = Path(f"/proc/{of}/task/{of}/children").read_text().split()
    (child,) = [int(c) for c in children if b"LOCAL_RANK=1" in Path(f"/proc/{c}/environ").read_bytes()]
    return child


def check(corpus: Path, home: Path, cut: Path, layout: tuple[str, ...], by: signal.Signals, to: str) -> None:
    whole = home / f"whole-{len(layout)}"
    if not whole.is_dir():
        end(start(corpus, home, whole, *layout))
    process = start(corpus, home, cut, *layout)
    await_step(10, cut, process)
    os.kill(process.pid if to == "first" else other_rank(process.pid), by)
    said = end(process, status=128 + by)
    told = json.loads((cut / "summary.json").read_text())
    (saved,) = checkpoints(cut)
    assert told["status"] == "preempted" and by.name in told["reason"]
    assert 10 <= step_of(saved) == told["steps"] < STEPS
    assert [row["step"] for row in lines(cut / "metrics.jsonl") if row["split"] == "train"][-1] == told["steps"]
    assert said.count("the same command goes on") == 1 and "Traceback" not in said
    assert f"from step {told['steps']}" in end(start(corpus, home, cut, *layout))
    assert story(cut) == story(whole)
    assert_equal_weights(checkpoints(cut)[-1], checkpoints(whole)[-1])


SLOWER = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("by", [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in SLOWER)])
def test_a_signalled_run_goes_on_exactly(corpus: Path, home: Path, tmp_path: Path, by: signal.Signals) -> None:
    check(corpus, home, tmp_path / "cut", (), by, "first")


@pytest.mark.parametrize(
    ("by", "to"), [pytest.param(signal.SIGTERM, "first", marks=pytest.mark.slow), (signal.SIGUSR2, "second")]
)
def test_two_ranks_stop_at_the_same_step_when_one_is_signalled(
    corpus: Path, home: Path, tmp_path: Path, by: signal.Signals, to: str
) -> None:
    check(corpus, home, tmp_path / "cut", TWO, by, to)
