"""Two gloo processes against one: the same rows, decisions and gradients; a resume on another number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.runs import SMALL, lines

pytestmark = pytest.mark.processes

METHOD = (
    *("method=[loss_selection,odm,sorted,loss_weighting]", "strategies.loss_selection.when.steps=3"),
    *("strategies.loss_selection.count=32", "strategies.odm.draw_groups=4", "trainer.micro_batch_size=2"),
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu")


def regimen(corpus: Path, home: Path, *overrides: str) -> str:
    fixed = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    command = [sys.executable, "-m", "regimen", "train", *SMALL, *fixed, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stderr


def batches(folder: Path) -> list[str]:
    return [row["batch"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def decisions(folder: Path) -> list[tuple]:
    """Decisions by step with what they rest on left out where float rounding may differ in the last digits."""
    rows = [row for row in lines(folder / "record.jsonl") if row["kind"] in ("selector", "orderer")]
    return [(row["step"], row["kind"], row["digest"]) for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoints(folder)[-1], weights_only=True)["state_dict"]


def test_one_step_of_sgd_shows_equal_gradients(corpus: Path, home: Path) -> None:
    """With plain SGD at rate 1 the change of the weights is the gradient."""
    sgd = ("optimizer=sgd", "optimizer.lr=1.0", "trainer.gradient_clip_val=null", "budget.steps=1", *METHOD)
    for name, layout in (("one", ()), ("two", TWO)):
        regimen(corpus, home, *sgd, *layout, f"run_dir={home}/sgd-{name}")
    one, two = weights(home / "sgd-one"), weights(home / "sgd-two")
    worst = max(float((one[k] - two[k]).abs().max()) for k in one)
    assert worst < 1e-6


def test_rows_and_decisions_are_the_same_on_one_and_on_two(corpus: Path, home: Path) -> None:
    regimen(corpus, home, *METHOD, f"run_dir={home}/one", "trainer.save_every_steps=4")
    said = regimen(corpus, home, *METHOD, *TWO, f"run_dir={home}/two", "trainer.save_every_steps=4")
    one, two = home / "one", home / "two"
    assert batches(one) == batches(two)
    assert decisions(one) == decisions(two)
    mixtures = [[r["mixture"] for r in lines(f / "record.jsonl") if r["kind"] == "mixer"] for f in (one, two)]
    for a, b in zip(*mixtures, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    losses = [[r["loss"] for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert said.count("bits per byte") == 1, "one rank alone speaks"
    reached = [json.loads((f / "summary.json").read_text())["evaluation"]["macro"]["loss"] for f in (one, two)]
    assert reached[0] == pytest.approx(reached[1], abs=1e-5)


@pytest.mark.parametrize(("first", "second"), [((), TWO), (TWO, ())], ids=["one-to-two", "two-to-one"])
def test_a_resume_on_another_number_of_processes_keeps_the_order(
    corpus: Path, home: Path, tmp_path: Path, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    regimen(corpus, home, *METHOD, f"run_dir={whole}")
    regimen(corpus, home, *METHOD, *first, f"run_dir={cut}", "trainer.save_every_steps=3", "trainer.keep_checkpoints=9")
    for path in checkpoints(cut)[1:]:
        path.unlink()  # leaves step 3, an odd number of micro-batches
    summary = json.loads((cut / "summary.json").read_text())
    (cut / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    said = regimen(corpus, home, *METHOD, *second, f"run_dir={cut}")
    assert "from step 3" in said
    assert batches(cut) == batches(whole)
    assert decisions(cut) == decisions(whole)
    losses = [[r["loss"] for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_multirun_skips_alike_on_both_ranks(corpus: Path, home: Path) -> None:
    """The second rank runs the whole multirun again; what is finished is skipped on both, and nobody waits."""
    sweep = ("-m", "method=natural,uniform", "seed=1,2", "sweep=pair", "budget.steps=2", *TWO)
    regimen(corpus, home, *sweep[:1], "method=uniform", *sweep[2:3], *sweep[3:])
    said = regimen(corpus, home, *sweep)
    assert said.count("skipped") == 2
    assert len(list((home / "outputs/pair").glob("*/summary.json"))) == 4
