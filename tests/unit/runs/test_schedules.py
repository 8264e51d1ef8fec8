"""Learning-rate schedules in closed form, and the groups of an optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.core.schedule import schedule_factor
from regimen.runs.optimizers import make_optimizer
from tests.support.runs import compose_settings


def factor(kind: str, total: int = 100, **parts: float) -> Any:
    return schedule_factor({"kind": kind, "warmup": 0.1, "final": 0.1, "decay": 0.2} | parts, total)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(kind: str) -> None:
    rate = factor(kind)
    assert [rate(step) for step in range(10)] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rate(10) == 1.0
    assert factor(kind, warmup=10)(4) == rate(4), "a warm-up of 1 or more counts steps"
    assert factor(kind, warmup=0)(0) == 1.0


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.1), ("linear", 0.1), ("wsd", 0.1), ("constant", 1.0)])
def test_the_last_step_has_the_final_rate(kind: str, last: float) -> None:
    assert factor(kind)(99) == pytest.approx(last)
    assert factor(kind)(99 + 50) == pytest.approx(last)


def test_cosine_and_linear_in_closed_form() -> None:
    for step in (10, 37, 55, 80, 99):
        done = (step - 10) / 89
        assert factor("cosine")(step) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
        assert factor("linear")(step) == pytest.approx(0.1 + 0.9 * (1 - done))


def test_wsd_is_flat_then_falls_in_a_line() -> None:
    rate = factor("wsd")
    assert {rate(step) for step in range(10, 81)} == {1.0}
    assert rate(90) == pytest.approx(0.1 + 0.9 * (1 - 10 / 19))
    assert factor("wsd", decay=0.5)(49) == 1.0 > factor("wsd", decay=0.5)(51)


def test_a_run_of_one_step_trains_at_the_peak() -> None:
    for kind in ("cosine", "linear", "wsd", "constant"):
        assert factor(kind, total=1, warmup=0)(0) == 1.0, kind


@pytest.mark.parametrize("parts", [{"warmup": -1}, {"final": 1.5}, {"decay": 0}, {"kind": "cosin"}])
def test_impossible_schedules_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        factor(**{"kind": "wsd", **parts})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_alone_decay(name: str) -> None:
    settings = compose_settings(f"optimizer={name}", "optimizer.weight_decay=0.3")["optimizer"]
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    optimizer, schedule = make_optimizer(settings, 10)(model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {key: decay[id(p)] for key, p in model.named_parameters()} == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = schedule_factor(settings["schedule"], 10)
    assert rates == pytest.approx([settings["lr"] * expected(step) for step in range(10)])
