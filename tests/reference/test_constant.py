"""Constant weights: Adam is blind to the scale of the loss, SGD is not, and the multiplier is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.weighting.constant import Constant
from tests.reference.observations import weighing
from tests.support.runs import lines, run, write_corpus

ADAM = ("optimizer=adamw", "optimizer.eps=1e-12", "optimizer.fused=false")
SGD = ("optimizer=sgd", "optimizer.lr=0.01")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("home")
    return write_corpus(home / "corpus"), home


def losses_of(folders: tuple[Path, Path], weight: float, *optimizer: str) -> torch.Tensor:
    settings = (f"strategies.constant.weight={weight}", "budget.steps=20", "evaluation.at=[1]")
    settings = (*settings, "trainer.gradient_clip_val=null")
    rows = lines(run(*folders, "method=constant", *settings, *optimizer) / "metrics.jsonl")
    trained = [row for row in rows if row["split"] == "train"]
    assert [row["effective_lr_multiplier"] for row in trained] == [weight] * 20
    assert [row["weight_variation"] for row in trained] == [0] * 20
    return torch.tensor([row["loss"] for row in trained], dtype=torch.float64)


def test_seven_under_adam_is_plain_training(folders: tuple[Path, Path]) -> None:
    plain, scaled = (losses_of(folders, weight, *ADAM) for weight in (1.0, 7.0))
    assert float(((scaled - plain) / plain).abs().max()) < 1e-5
    assert plain[-1] < plain[0] - 0.01


def test_seven_under_sgd_is_seven_times_the_learning_rate(folders: tuple[Path, Path]) -> None:
    plain, scaled = (losses_of(folders, weight, *SGD) for weight in (1.0, 7.0))
    faster = losses_of(folders, 1.0, *SGD, "optimizer.lr=0.07")
    assert float(((scaled - plain) / plain).abs().max()) > 1e-3
    torch.testing.assert_close(scaled, faster, rtol=1e-5, atol=0)


def test_weights() -> None:
    assert Constant(weight=0.5).weigh(None, torch.ones(3), weighing([0, 0, 0])).tolist() == [0.5] * 3


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="0 or more"):
        Constant(weight=weight)
