"""Signals of a scheduler to real processes: every rank stops at the same step, saves, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from regimen.runs import requeue
from regimen.training.callbacks.checkpoint import checkpoints, step_of
from tests.support.runs import SMALL, lines

COMMON = (
    *("method=[loss_selection,odm]", "strategies.loss_selection.when.steps=5", "strategies.loss_selection.count=32"),
    *("strategies.odm.draw_groups=4", "budget.steps=60", "+model.config.attention_dropout=0.1"),
    *("trainer.save_every_minutes=null", "dataset.max_epochs_per_domain=null", "trainer.micro_batch_size=2"),
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu")


class Started:
    """A run in a process group of its own."""

    def __init__(self, corpus: Path, home: Path, folder: Path, *overrides: str) -> None:
        self.folder = folder
        fixed = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"run_dir={folder}")
        command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *COMMON, *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=home, start_new_session=True
        )

    def reach(self, step: int) -> None:
        metrics, deadline = self.folder / "metrics.jsonl", time.monotonic() + 200
        while not metrics.is_file() or f'"step": {step}, "split": "train"' not in metrics.read_text():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline, "the run did not get far enough"
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        try:
            _, said = self.process.communicate(timeout=200)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, said

    def other_rank(self) -> int:
        """The process that this one has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        wanted = [int(c) for c in children if b"LOCAL_RANK=1" in Path(f"/proc/{c}/environ").read_bytes()]
        (child,) = wanted
        return child


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def assert_same_end(one: Path, other: Path) -> None:
    """Losses, batches and weights of two finished runs are the same bits."""
    rows = [
        [(r["step"], r["loss"], r["batch"]) for r in lines(f / "metrics.jsonl") if r["split"] == "train"]
        for f in (one, other)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 60
    left, right = (torch.load(checkpoints(f)[-1], weights_only=True)["state_dict"] for f in (one, other))
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("layout", "which"),
    [
        pytest.param((), signal.SIGTERM, id="one-TERM"),
        pytest.param((), signal.SIGUSR2, id="one-USR2", marks=pytest.mark.slow),
        pytest.param(TWO, signal.SIGUSR1, id="two-USR1"),
    ],
)
def test_a_preempted_run_goes_on_exactly(
    layout: Sequence[str], which: signal.Signals, corpus: Path, home: Path, tmp_path: Path
) -> None:
    whole = Started(corpus, home, tmp_path / "whole", *layout)
    code, said = whole.end()
    assert code == 0, said
    stopped = Started(corpus, home, tmp_path / "stopped", *layout)
    stopped.reach(7)
    os.kill(stopped.other_rank() if layout else stopped.process.pid, which)  # a scheduler may tell one rank alone
    code, said = stopped.end()
    assert code == 128 + which and "Traceback" not in said, said
    assert said.count("goes on from there") == 1, said
    told = summary(stopped.folder)
    (saved,) = checkpoints(stopped.folder)
    assert (told["status"], told["steps"]) == ("preempted", step_of(saved)) and 7 <= step_of(saved) < 60
    assert which.name in told["reason"]
    code, said = Started(corpus, home, stopped.folder, *layout).end()
    assert code == 0 and f"resuming {stopped.folder} from step {step_of(saved)}" in said, said
    assert summary(stopped.folder)["status"] == "finished"
    assert_same_end(whole.folder, stopped.folder)


def test_a_killed_rank_ends_the_run_with_the_reason(corpus: Path, home: Path, tmp_path: Path) -> None:
    started = Started(corpus, home, tmp_path / "run", *TWO, "trainer.save_every_steps=5")
    started.reach(12)
    os.kill(started.other_rank(), signal.SIGKILL)
    code, said = started.end()
    assert code == 1 and "another process of the run has died" in said and "Traceback" not in said, said
    told = summary(started.folder)
    assert told["status"] == "failed" and "another process" in told["reason"]
    assert step_of(checkpoints(started.folder)[-1]) >= 10


def test_a_job_asks_slurm_to_be_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a program of that name which notes what it was asked."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert requeue.in_job()
    requeue.requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    requeue.requeue()
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 17", "requeue 15_2"]
