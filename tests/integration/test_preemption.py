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
import torch

from regimen.training.callbacks.checkpoint import checkpoints, step_of
from regimen.training.checkpoint_formats import read_weights
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


def start(
    corpus: Path, home: Path, folder: Path, *overrides: str, method: tuple[str, ...] = METHOD
) -> subprocess.Popen[bytes]:
    fixed = [f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.store={home}/store", f"run_dir={folder}"]
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *method, *fixed, *overrides]
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
    whole = home / "-".join(("whole", *layout[:1])).replace("=", "-")
    if not whole.is_dir():
        end(start(corpus, home, whole, *layout))
    process = start(corpus, home, cut, *layout)
    try:
        await_step(10, cut, process)
        os.kill(process.pid if to == "first" else other_rank(process.pid), by)
        said = end(process, status=128 + by)
    finally:
        process.kill()  # it has ended, unless a check failed
    told = json.loads((cut / "summary.json").read_text())
    (saved,) = checkpoints(cut)
    assert told["status"] == "preempted" and by.name in told["reason"]
    assert 10 <= step_of(saved) == told["steps"] < STEPS
    assert not list(cut.rglob("*.tmp"))
    assert [row["step"] for row in lines(cut / "metrics.jsonl") if row["split"] == "train"][-1] == told["steps"]
    assert said.count("the same command goes on") == 1 and "Traceback" not in said
    assert f"from step {told['steps']}" in end(start(corpus, home, cut, *layout))
    assert story(cut) == story(whole)
    assert_equal(checkpoints(cut)[-1], checkpoints(whole)[-1])


def assert_equal(first: Path, second: Path) -> None:
    """Bit for bit, in whichever format the strategy saves."""
    if first.is_file():
        assert_equal_weights(first, second)
        return
    mine, theirs = read_weights(first), read_weights(second)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


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


def sharded(strategy: str, by: signal.Signals, to: str, *, slow: bool = True) -> object:
    return pytest.param(strategy, by, to, marks=[pytest.mark.slow] if slow else [], id=f"{strategy}-{by.name}-{to}")


@pytest.mark.timeout(900)  # three launches of two processes that import DeepSpeed; the machine may be busy
@pytest.mark.parametrize(
    ("strategy", "by", "to"),
    [
        sharded("fsdp", signal.SIGTERM, "second", slow=False),
        sharded("fsdp", signal.SIGUSR1, "first"),
        sharded("fsdp", signal.SIGUSR2, "second"),
        sharded("deepspeed_zero1", signal.SIGTERM, "second"),
        sharded("deepspeed_zero2", signal.SIGUSR1, "second"),
        sharded("deepspeed_zero2", signal.SIGTERM, "first"),
        sharded("deepspeed_zero3", signal.SIGUSR2, "second"),
        sharded("deepspeed_zero3", signal.SIGTERM, "second"),
        sharded("deepspeed_zero3", signal.SIGUSR1, "first"),
    ],
)
def test_ranks_that_share_a_model_stop_at_the_same_step(
    corpus: Path, home: Path, tmp_path: Path, strategy: str, by: signal.Signals, to: str
) -> None:
    check(corpus, home, tmp_path / "cut", (f"trainer={strategy}", "trainer.accelerator=cpu"), by, to)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_preempted_run_goes_on_under_another_strategy(corpus: Path, home: Path, tmp_path: Path) -> None:
    """From FSDP2 on two processes to one process: the rows of an undisturbed run, and its losses to rounding."""
    natural = ("method=natural", f"budget.steps={STEPS}", "dataset.max_epochs_per_domain=null", "trainer.threads=1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    end(start(corpus, home, whole, method=natural))
    process = start(corpus, home, cut, "trainer=fsdp", "trainer.accelerator=cpu", method=natural)
    try:
        await_step(10, cut, process)
        os.kill(process.pid, signal.SIGTERM)
        end(process, status=128 + signal.SIGTERM)
    finally:
        process.kill()  # it has ended, unless a check failed
    assert "from step" in end(start(corpus, home, cut, method=natural))
    mine, theirs = ([r for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (cut, whole))
    assert [row["batch"] for row in mine] == [row["batch"] for row in theirs]
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in theirs], abs=1e-4)
