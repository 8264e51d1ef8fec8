"""Two gloo processes learn and weigh as one does: phi, weights, and the losses that come of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_signals_two_processes import TWO, regimen
from tests.support.runs import lines, write_corpus

pytestmark = pytest.mark.processes

TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 5, seed: 0}"
METHODS = {
    "dwm": [
        *("strategies.dwm.stages=3", "strategies.dwm.meta_steps=4", "strategies.dwm.width=16"),
        *("strategies.dwm.rows=7", "strategies.dwm.target_rows=3", "strategies.dwm.meta_lr=0.01"),
    ],
    "dwm that moves the model": [
        *("strategies.dwm.stages=2", "strategies.dwm.meta_steps=3", "strategies.dwm.width=16"),
        *("strategies.dwm.rows=7", "strategies.dwm.target_rows=3", "strategies.dwm.meta_lr=0.01"),
        "strategies.dwm.update_lm=true",
    ],
    "learning_to_reweight": [],
    "scalebio": ["strategies.scalebio.score_lr=0.3", "strategies.scalebio.target_rows=3"],
    "meta_weight_net": ["strategies.meta_weight_net.meta_lr=0.01", "strategies.meta_weight_net.target_rows=3"],
}


@pytest.mark.parametrize("method", ["dwm", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "dwm")])
def test_two_processes_are_one(method: str, tmp_path: Path) -> None:
    """Odd numbers of rows, so that one rank has one twice, and accumulation on two ranks."""
    write_corpus(tmp_path / "corpus")
    common = (
        f"dataset.path={tmp_path}/corpus",
        TARGET,
        f"method={method.split()[0]}",
        *METHODS[method],
        "trainer.log_every=1",
    )
    one = regimen(tmp_path, "train", "one", *common)
    two = regimen(tmp_path, "train", "two", *common, *TWO)
    losses, weights = [], []
    for folder in (one, two):
        losses.append([row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"])
        told = [row for row in lines(folder / "record.jsonl") if row["kind"] == "weighter"]
        weights.append([[row["min"], row["max"], row["effective_sample_size"]] for row in told])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert np.allclose(*weights, atol=0.02) and np.ptp(weights[0], axis=0).max() > 0.05
    if method.startswith("dwm"):
        phi = [np.load(folder / "gives" / "phi.npy") for folder in (one, two)]
        assert np.abs(phi[0] - phi[1]).max() < 0.01
