"""A run that cannot go on: changed data or settings, a loss that is no number, a full disk. Nothing whole is lost."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.cli import CommandLine
from tests.support.runs import lines, replace_line, story


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def unfinished(regimen: CommandLine, folder: Path, *overrides: str, step: int = 3) -> tuple[str, ...]:
    """A run that was killed after `step`; returns the command that goes on with it."""
    command = (*overrides, f"run_dir={folder}", "trainer.save_every_steps=1", "trainer.keep_checkpoints=null")
    assert regimen.small("train", *command).status == 0
    for path in checkpoints(folder)[step:]:
        path.unlink()
    (folder / "summary.json").write_text(json.dumps(summary_of(folder) | {"status": "running"}))
    return command


def test_changed_data_is_refused(regimen: CommandLine, damaged: Path, tmp_path: Path) -> None:
    """By the same command and by resume=, both fingerprints named; the run stays as it was."""
    folder = tmp_path / "run"
    command = unfinished(regimen, folder, f"dataset.path={damaged}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "attempt.json"}
    replace_line(damaged / "prose.jsonl", 7, '{"id": "p", "text": "another text altogether"}')
    old = summary_of(folder)["fingerprints"]["pool"]
    for error in (regimen.refused(*command), regimen.refused_as_it_is("train", f"resume={folder}")):
        assert "another data" in error and "run_dir=DIR" in error
        given, allowed = (line.split()[-1] for line in error.splitlines()[1:3])
        assert allowed == old and given != old and len(given) == len(old) == 64
    assert {path: path.read_bytes() for path in before} == before


def test_a_resumed_run_keeps_its_settings(regimen: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = unfinished(regimen, folder)
    error = regimen.refused_as_it_is("train", f"resume={folder}", "optimizer.lr=1e-4")
    assert "optimizer.lr=1e-4" in error and "a resumed run keeps its own settings" in error
    error = regimen.refused(*command, "optimizer.lr=1e-4")
    assert "another configuration" in error and "run_dir=DIR" in error
    done = regimen("train", f"resume={folder}", "trainer.micro_batch_size=4")
    assert done.status == 0 and "from step 3" in done.err


def test_another_version_must_be_accepted(regimen: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    unfinished(regimen, folder)
    summary = summary_of(folder)
    summary["versions"]["regimen"] = "0.0.1"
    (folder / "summary.json").write_text(json.dumps(summary))
    error = regimen.refused_as_it_is("train", f"resume={folder}")
    assert "regimen 0.0.1" in error and "accept_other_version=true" in error
    assert regimen("train", f"resume={folder}", "accept_other_version=true").status == 0


# ---- in mid-training -------------------------------------------------------------------------------------------

EXPLODES = ("optimizer.lr=1e30", "trainer.gradient_clip_val=null", "optimizer.schedule.warmup=0")


@pytest.mark.parametrize("method", ["natural", "loss_weighting", "odm"])
def test_a_loss_that_is_not_a_number_stops_the_run(method: str, regimen: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = regimen.small("train", f"method={method}", *EXPLODES, f"run_dir={folder}", "trainer.save_every_steps=1")
    assert done.status == 1 and "Traceback" not in done.err
    assert "error: the loss is not a number at step 2" in done.err
    assert "8 of 8 rows, ids [" in done.err and "domains code, prose, sums" in done.err
    assert "optimizer.lr" in done.err
    summary = summary_of(folder)
    assert summary["status"] == "failed" and summary["reason"] == "the loss is not a number at step 2"
    assert [path.name for path in checkpoints(folder)] == ["step-00000001.ckpt"]
    assert {row["step"] for row in lines(folder / "metrics.jsonl")} == {0, 1}


def test_weights_that_are_not_numbers_at_the_end_are_no_result(regimen: CommandLine, tmp_path: Path) -> None:
    """The last step's loss is still a number; the evaluation of the weights it left is not."""
    folder = tmp_path / "run"
    done = regimen.small("train", *EXPLODES, f"run_dir={folder}", "budget.steps=1")
    assert done.status == 1
    assert "the loss is not a number" in done.err and "validation" in done.err
    assert summary_of(folder)["status"] == "failed"
    assert checkpoints(folder) == []


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(
    regimen: CommandLine, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    unfinished(regimen, whole, step=8)
    command = unfinished(regimen, folder)
    kept = checkpoints(folder)[-1].read_bytes()
    with small_disk(32_000):  # enough for everything but a checkpoint
        done = regimen.small("train", *command)
    assert done.status == 1 and "Traceback" not in done.err, done.err
    assert f"error: cannot save the checkpoint of step 4 in {folder}/checkpoints" in done.err
    assert "MB free there" in done.err and "free some space" in done.err
    assert [path.name for path in checkpoints(folder)] == [f"step-{k:08d}.ckpt" for k in (1, 2, 3)]
    assert checkpoints(folder)[-1].read_bytes() == kept
    assert torch.load(checkpoints(folder)[-1], weights_only=True)["global_step"] == 3
    assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []
    assert summary_of(folder)["status"] == "failed"
    done = regimen.small("train", *command)
    assert done.status == 0 and "from step 3" in done.err
    assert story(folder) == story(whole)


def test_a_disk_full_from_the_start_is_said(regimen: CommandLine, corpus: Path, tmp_path: Path) -> None:
    places = [f"paths.pools={tmp_path}/pools", f"run_dir={tmp_path}/run"]
    with small_disk(10_000):
        error = regimen.refused(*places)
    assert "the data cannot be prepared" in error and "File too large" in error and "paths.pools=DIR" in error
    assert not (tmp_path / "run").exists()
    assert list(tmp_path.rglob("*.tmp")) == [] and list(tmp_path.rglob("manifest.json")) == []
    assert regimen.small("train", *places).status == 0
