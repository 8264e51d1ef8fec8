"""Weights of rows and tokens rest on the global batch: the same steps however it is cut, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from regimen.training.callbacks.checkpoint import checkpoints
from tests.support.ranks import on_two_ranks
from tests.support.runs import lines, run

pytestmark = pytest.mark.processes

TARGET = "dataset.target={path: null, from: [a], rows_per_subtask: 4, seed: 0}"
CELLS = {
    "adapt": ("method=adapt", "strategies.adapt.every=2", "strategies.adapt.tau=0.05", TARGET),
    "focal": ("method=focal", "strategies.focal.norm=sum", "strategies.focal.gamma=5.0"),
    "joint_update_aware": ("method=joint_update_aware", "strategies.joint_update_aware.every=2", TARGET),
    "rho1": ("method=rho1", "strategies.rho1.ratio=0.5"),
    "group_dro": ("method=group_dro", "strategies.group_dro.step_size=1.0"),
}
COMMON = (
    *("dataset=sft_files", "objective=sft", "dataset.tokenizer.kind=bytes", "dataset.seq_len=256", "budget.steps=3"),
    *("dataset.domain_field=task", "dataset.overlap.n=0", "trainer.log_every=1", "evaluation.at=[1]"),
    *("optimizer.lr=0.03", "optimizer.schedule.warmup=0"),
)
SCRIPT = """
import sys
from pathlib import Path
from tests.support.runs import run
corpus, home, out, *cells = sys.argv[1:]
for cell in cells:
    name, *overrides = cell.split("|")
    run(Path(corpus), Path(home), *overrides, f"run_dir={out}/{name}", "trainer=ddp", "trainer.accelerator=cpu",
        "trainer.micro_batch_size=2")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of one pass, of four micro-batches, and of two processes with two each; a folder per method."""
    corpus, home = tmp_path_factory.mktemp("corpus") / "rows.jsonl", tmp_path_factory.mktemp("home")
    rows = [{"instruction": f"say {i}", "output": "abc"[i % 3] * (2 + i % 17), "task": "ab"[i % 2]} for i in range(60)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = {name: tmp_path_factory.mktemp(name) for name in ("whole", "parts", "two")}
    for name, cell in CELLS.items():
        run(corpus, home, *COMMON, *cell, f"run_dir={out['whole']}/{name}", "trainer.micro_batch_size=8")
        run(corpus, home, *COMMON, *cell, f"run_dir={out['parts']}/{name}", "trainer.micro_batch_size=2")
    cells = ["|".join([name, *COMMON, *cell]) for name, cell in CELLS.items()]
    on_two_ranks(SCRIPT, [str(corpus), str(home), str(out["two"]), *cells], name="weights")
    return out


def told(folder: Path) -> list[dict[str, Any]]:
    return [row for row in lines(folder / "record.jsonl") if row["kind"] == "weighter"]


@pytest.mark.parametrize("cut", ["parts", "two"])
@pytest.mark.parametrize("method", CELLS)
def test_the_same_steps(folders: dict[str, Path], method: str, cut: str) -> None:
    one, other = folders["whole"] / method, folders[cut] / method
    lines_of_one, lines_of_other = told(one), told(other)
    assert len(lines_of_one) == 3
    for a, b in zip(lines_of_one, lines_of_other, strict=True):
        for key in ("loss", "weighted_loss", "effective_sample_size", "effective_lr_multiplier", "mean"):
            assert b[key] == pytest.approx(a[key], rel=1e-4), (a["step"], key)
    first, second = (torch.load(checkpoints(folder)[-1], weights_only=True)["state_dict"] for folder in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("method", CELLS)
def test_the_weights_differ(folders: dict[str, Path], method: str) -> None:
    """So that equal steps above say something."""
    assert max(row["weight_variation"] for row in told(folders["whole"] / method)) > 0.01


def test_rho1_tells_both_losses(folders: dict[str, Path]) -> None:
    """Half of the tokens, each counting twice: the loss in the metrics is that of all."""
    rows = told(folders["whole"] / "rho1")
    trained = [row for row in lines(folders["whole"] / "rho1" / "metrics.jsonl") if row["split"] == "train"]
    for row, metrics in zip(rows, trained, strict=True):
        assert row["effective_sample_size"] == pytest.approx(0.5, abs=0.02)
        assert row["effective_lr_multiplier"] == pytest.approx(1, rel=1e-6)
        assert row["loss"] == pytest.approx(metrics["loss"])
        assert abs(row["weighted_loss"] - row["loss"]) > 1e-4
