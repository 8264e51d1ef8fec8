"""What cannot be spread over processes is refused in words before a model is built, on the screen of one rank."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.cli import CommandLine

CPU = "trainer.accelerator=cpu"
TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 3, seed: 0}"
LOOP = ("method=less_online", TARGET, "strategies.less_online.by.sketch.backend=loop")
REFUSED = {
    "a name of Lightning's": (
        ["trainer.strategy=deepspeed_stage_2"],
        ["trainer.strategy=deepspeed_stage_2", "fsdp, deepspeed_zero1", "trainer=fsdp"],
    ),
    "half precision": (
        ["trainer=fsdp", CPU, "trainer.precision=16-mixed"],
        ["trainer.precision=16-mixed", "32-true, bf16-mixed", "trainer=ddp"],
    ),
    "a compiled model": (["trainer=deepspeed_zero3", CPU, "model.compile=true"], ["model.compile=true", "trainer=ddp"]),
    "a Mac's GPU": (["trainer=fsdp", "trainer.accelerator=mps"], ["trainer.accelerator=mps", "trainer=cpu"]),
    "a batch that does not divide": (
        ["trainer=fsdp", CPU, "trainer.devices=3"],
        ["global_batch_size=8", "ranks 3", "a multiple of 6", "global_batch_size=12"],
    ),
    "averages of weights in parts": (
        ["trainer=fsdp", CPU, "optimizer.average.kind=mean"],
        ["optimizer.average.kind=mean", "trainer=ddp", "schedule.kind=wsd"],
    ),
    "virtual steps of a model in parts": (
        ["trainer=fsdp", CPU, "method=dwm", TARGET],
        ["strategies.dwm", "trainer.strategy=fsdp", "trainer=ddp"],
    ),
    "a second model in parts": (
        ["trainer=fsdp", CPU, "method=scalebio", TARGET],
        ["strategies.scalebio", "a second model", "trainer.strategy=fsdp", "trainer=ddp"],
    ),
    "lessons that move a model of which the optimizer has a copy": (
        ["trainer=deepspeed_zero2", CPU, "method=dwm", "strategies.dwm.update_lm=true", TARGET],
        ["strategies.dwm", "trainer.strategy=deepspeed_zero2", "trainer=ddp", "strategies.dwm.update_lm=false"],
    ),
    "a descent of a model in parts": (
        ["trainer=deepspeed_zero3", CPU, "method=lqs", TARGET],
        ["strategies.lqs", "trainer.strategy=deepspeed_zero3", "trainer=ddp"],
    ),
    "gradients row by row of a model in parts": (
        ["trainer=fsdp", CPU, *LOOP],
        ["strategies.less_online", "backend=loop", "trainer.strategy=fsdp", "deepspeed_zero2", "backend=hooks"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sharded_is_refused(regimen: CommandLine, name: str) -> None:
    overrides, words = REFUSED[name]
    error = regimen.refused(*overrides)
    assert [word for word in words if word not in error] == [], error


def test_deepspeed_is_asked_for_where_it_is_missing(regimen: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    error = regimen.refused("trainer=deepspeed_zero2", CPU)
    assert "pip install 'regimen[deepspeed]'" in error and "trainer=fsdp" in error


def test_zero_does_not_go_on_from_what_another_strategy_saved(regimen: CommandLine, tmp_path: Path) -> None:
    place = f"run_dir={tmp_path}/run"
    assert regimen.small("train", place, "budget.steps=2").status == 0
    summary = tmp_path / "run/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": "running"}))
    refused = regimen.small("train", place, "budget.steps=2", "trainer=deepspeed_zero2", CPU)
    assert refused.status == 1
    assert "saved by one process or DDP" in refused.err and "auto, ddp or fsdp" in refused.err


def test_the_other_rank_is_silent(regimen: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    done = regimen.small("train", *REFUSED["half precision"][0])
    assert (done.status, done.out, done.err) == (1, "", "")


def test_the_table_of_signals_is_up_to_date() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert (docs / "sharding.md").read_text() == runpy.run_path(str(docs / "sharding.py"))["page"](), "make docs"
