"""A process of a run that is killed: the others end with the reason, and the last save is kept."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from regimen.training.callbacks.checkpoint import checkpoints, step_of
from tests.integration.test_preemption import TWO, await_step, end, other_rank, start

pytestmark = pytest.mark.processes


def test_a_killed_rank_ends_the_run_with_the_reason(corpus: Path, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(corpus, home, folder, *TWO, "trainer.save_every_steps=5")
    await_step(12, folder, process)
    os.kill(other_rank(process.pid), signal.SIGKILL)
    said = end(process, status=1)
    assert "another process of the run has died" in said and "Traceback" not in said
    told = json.loads((folder / "summary.json").read_text())
    assert told["status"] == "failed" and "another process" in told["reason"]
    assert step_of(checkpoints(folder)[-1]) >= 10
