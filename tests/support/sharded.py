"""Grids over the strategies that spread a model over processes, and what is compared of their runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from regimen.core.signal import Signal
from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.every_signal import OF_DOMAINS, SIGNALS
from tests.support.runs import SMALL, lines

ROOT = Path(__file__).parents[2]
STRATEGIES = ("fsdp", "deepspeed_zero2", "deepspeed_zero3")
EVERY = "tests.support.every_signal"
WHEN = ("when._target_=regimen.core.trigger.Every", "when.steps=2", "when.start=2")
DATA = (
    *("dataset=sft_files", "objective=sft", "dataset.seq_len=256", "dataset.domain_field=task", "dataset.overlap.n=0"),
    "dataset.target={path: null, from: [a], rows_per_subtask: 3, seed: 0}",
)
METHOD = (
    *("method=[sorted,loss_weighting]", "strategies.sorted.when._target_=regimen.core.trigger.Every"),
    *("++strategies.sorted.when.steps=3", "++strategies.sorted.when.start=3", "~strategies.sorted.when.at"),
    *(f"++strategies.every._target_={EVERY}.EverySignal", "++strategies.every.candidates=27"),
    *(f"++strategies.every.{when}" for when in WHEN),
    *("trainer.micro_batch_size=2", "budget.steps=6", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9"),
)
DOMAINS = (
    f"++strategies.domains._target_={EVERY}.EveryDomainSignal",
    *(f"++strategies.domains.{when}" for when in WHEN),
)
TWO = ("trainer.accelerator=cpu", "trainer.devices=2")


def launch(
    home: Path,
    group: str,
    strategies: tuple[str, ...],
    *overrides: str,
    values: str | None = None,
    domains: bool = True,
) -> dict[str, Any]:
    """What starts a grid over `strategies`, each in a folder named after it, in processes of its own.

    values: where the strategies put them, which is a part of the configuration. domains: with the signals of domains.
    """
    place = f"{home}/{group}/${{choices.trainer}}"
    values = values or f"{home}/{group}-values/${{choices.trainer}}"
    paths = (f"dataset.path={home}/examples.jsonl", f"paths.pools={home}/pools", f"paths.store={home}/store")
    given = [*SMALL, *DATA, *METHOD, *paths, f"++strategies.every.to='{values}'"]
    given += [*DOMAINS, f"++strategies.domains.to='{values}'"] if domains else []
    given += [f"trainer={','.join(strategies)}", f"run_dir='{place}'", f"sweep={group}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return {"args": [sys.executable, "-m", "regimen", "train", "-m", *given], "env": environment, "cwd": home}


def grid(home: Path, group: str, strategies: tuple[str, ...], *overrides: str, **more: Any) -> str:
    """Train under each strategy; returns what was put on the screen."""
    started = launch(home, group, strategies, *overrides, **more)
    done = subprocess.run(**started, capture_output=True, text=True, timeout=850)  # the test's own limit is less
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def of_steps(folder: Path, name: str) -> list:
    return [row[name] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def decisions(folder: Path) -> list[tuple]:
    return [(r["step"], r["kind"], r["digest"]) for r in lines(folder / "record.jsonl") if "digest" in r]


def assert_same_run(folder: Path, one: Path) -> None:
    assert of_steps(folder, "batch") == of_steps(one, "batch")
    assert decisions(folder) == decisions(one) and len(decisions(one)) > 3
    assert of_steps(folder, "loss") == pytest.approx(of_steps(one, "loss"), abs=2e-6)
    assert of_steps(folder, "gradient_norm") == pytest.approx(of_steps(one, "gradient_norm"), rel=2e-5)
    weighed = [[r["effective_sample_size"] for r in lines(f / "metrics.jsonl") if "batch" in r] for f in (folder, one)]
    assert weighed[0] == pytest.approx(weighed[1], abs=1e-5)


def assert_same_signals(
    folder: Path, one: Path, step: int, of_rows: Mapping[str, Signal] = SIGNALS, tolerance: float = 1e-5
) -> None:
    for file, known in ((f"{step}.pt", of_rows), (f"{step}-domains.pt", OF_DOMAINS)):
        mine, theirs = (torch.load(f.parents[1] / f"{f.parent.name}-values" / f.name / file) for f in (folder, one))
        assert list(mine) == list(theirs) == list(known)
        for name in known:
            scale = max(float(theirs[name].abs().max()), 1e-6)
            worst = float((mine[name].double() - theirs[name].double()).abs().max())
            assert worst <= tolerance * scale, name


def cut(folder: Path, to: Path, step: int = 3) -> Path:
    """A copy of a run that was stopped after `step`."""
    shutil.copytree(folder, to)
    for path in checkpoints(to):
        if not path.name.endswith(f"{step}.ckpt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = json.loads((to / "summary.json").read_text())
    (to / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    return to
