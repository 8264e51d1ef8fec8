"""Optimizer steps that a budget pays for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regimen.core.errors import ConfigError
from regimen.runs.budget import chosen_unit, total_steps

NONE = {"steps": None, "tokens": None, "epochs": None, "flops": None, "fallback_steps": 300}


def steps(flops_of: Callable[[int], float] = lambda n: 7.0 * n, **given: float) -> int:
    """Batches of 16 rows of 100 tokens from a pool of 1000 rows."""
    return total_steps(NONE | given, batch_rows=16, batch_tokens=1600.0, pool_rows=1000, flops_of=flops_of)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 300),
        ({"steps": 12}, 12),
        ({"steps": 12.0}, 12),
        ({"tokens": 1600}, 1),
        ({"tokens": 3199}, 1),
        ({"tokens": 2e6}, 1250),
        ({"epochs": 1}, 62),  # 62.5 batches: what is not a whole batch is not trained on
        ({"epochs": 0.5}, 31),
        ({"epochs": 1.6}, 100),
        ({"flops": 7.0}, 1),
        ({"flops": 6999.0}, 999),
        ({"flops": 7e9}, 10**9),
    ],
)
def test_whole_steps_within_the_budget(given: dict[str, float], expected: int) -> None:
    assert steps(**given) == expected


def test_flops_pay_for_measuring_too() -> None:
    """A measurement of 1000 after every tenth step, and one before the first."""

    def flops_of(n: int) -> float:
        return 7.0 * n + 1000 * (1 + (n - 1) // 10)

    found = steps(flops_of, flops=5_000)
    assert flops_of(found) <= 5_000 < flops_of(found + 1)
    assert found == 40


def test_units_agree_on_one_run() -> None:
    for unit, amount in (("steps", 250), ("tokens", 250 * 1600), ("epochs", 250 * 16 / 1000), ("flops", 250 * 7.0)):
        assert steps(**{unit: amount}) == 250, unit


@pytest.mark.parametrize("given", [{"tokens": 1599}, {"epochs": 0.0159}, {"flops": 6.9}])
def test_less_than_a_step_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="does not pay for one optimizer step"):
        steps(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 5, "epochs": 1}, "budget.steps=5, budget.epochs=1"),
        ({"steps": 0}, "budget.steps=0"),
        ({"tokens": -5}, "budget.tokens=-5"),
        ({"steps": 2.5}, "budget.steps=2"),
        ({"flops": "1e12 "}, "budget.flops=1e12"),
        ({"steps": True}, "budget.steps=True"),
    ],
)
def test_what_is_no_budget_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        chosen_unit(NONE | given)
    assert words in str(error.value) and "do:" in str(error.value)
