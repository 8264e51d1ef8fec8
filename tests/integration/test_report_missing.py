"""A grid that was preempted, on real runs: the report says of every run that is missing why, and where it goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.cli import CommandLine, environment
from tests.support.runs import SMALL

GRID = ("method=natural,uniform,odm", "seed=1,2", "sweep=grid", "budget.steps=40", "trainer.save_every_steps=10")


def preempt(regimen: CommandLine, run: str, *, after: int) -> None:
    """Start the grid, and send SIGTERM when its run `run` has logged a step."""
    command = [sys.executable, "-m", "regimen", "train", "-m", *SMALL, *regimen.places(), *GRID]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), cwd=regimen.home)
    deadline = time.monotonic() + 200
    while not any(
        f'"step": {after}, "split": "train"' in path.read_text()
        for path in (regimen.home / "outputs" / "grid").glob(f"{run}-*/metrics.jsonl")
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 128 + signal.SIGTERM, said


def missing(regimen: CommandLine, folder: Path) -> list[str]:
    done = regimen("report", f"runs={folder}", f"out={folder.parent}")
    assert done.status == 0, done.err
    text = (folder.parent / "report.md").read_text()
    return re.findall(r"^\* (\w+, seeds? .*)$", text, re.MULTILINE)


def test_what_a_grid_lacks_and_why(regimen: CommandLine) -> None:
    folder = regimen.home / "outputs" / "grid"
    preempt(regimen, "uniform-nano-jsonl-seed1", after=12)
    lines = missing(regimen, folder)
    assert len(lines) == 3
    told = re.fullmatch(
        r"uniform, seed 1: preempted at step (\d+) \(stopped by SIGTERM\); the same command goes on from step (\d+)",
        lines[0],
    )
    assert told is not None and told[1] == told[2] and 12 <= int(told[1]) < 40
    assert lines[1:] == ["uniform, seed 2: never started", "odm, seeds 1 and 2: never started"]
    explodes = ("optimizer.lr=1e30", "trainer.gradient_clip_val=null", "optimizer.schedule.warmup=0")
    failed = regimen.small("train", "method=odm", "seed=1", *GRID[2:], *explodes, "trainer.save_every_steps=1")
    assert failed.status == 1
    lines = missing(regimen, folder)
    assert lines[:2] == [
        "odm, seed 1: failed, the loss is not a number at step 2; the same command goes on from step 1",
        "odm, seed 2: never started",
    ]
