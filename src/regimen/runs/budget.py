"""How many optimizer steps a budget pays for.

A FLOPs budget pays for training and for what the strategies measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regimen.core.errors import ConfigError

UNITS = ("steps", "tokens", "epochs", "flops")


def chosen_unit(budget: Mapping[str, Any]) -> tuple[str, float]:
    """The unit and amount that the user gave, or the fallback steps. Raises ConfigError for two units or none > 0."""
    given = {unit: budget[unit] for unit in UNITS if budget[unit] is not None}
    if len(given) > 1:
        raise ConfigError(
            "a run has one budget",
            got=", ".join(f"budget.{unit}={amount}" for unit, amount in given.items()),
            allowed="one of " + ", ".join(f"budget.{unit}" for unit in UNITS),
            do="drop " + " or ".join(f"budget.{unit}" for unit in given) + ", or set one of them to null",
        )
    unit, amount = next(iter(given.items()), ("steps", budget["fallback_steps"]))
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not amount > 0:
        raise ConfigError(
            "the budget must be a positive number",
            got=f"budget.{unit}={amount}",
            allowed="a number above 0",
            do=f"e.g. budget.{unit}=200",
        )
    if unit == "steps" and amount != int(amount):
        raise ConfigError(
            "steps are whole", got=f"budget.steps={amount}", allowed="1, 2, ...", do=f"budget.steps={round(amount)}"
        )
    return unit, float(amount)


def total_steps(
    budget: Mapping[str, Any],
    *,
    batch_rows: int,
    batch_tokens: float,
    pool_rows: int,
    flops_of: Callable[[int], float],
) -> int:
    """Optimizer steps that the budget pays for.

    batch_rows, batch_tokens: rows and mean target tokens of a global batch. flops_of: FLOPs of a run of n steps,
    measuring included, increasing in n.
    """
    unit, amount = chosen_unit(budget)
    if unit == "flops":
        steps = _affordable(amount, flops_of)
    else:
        per_step = {"steps": 1.0, "tokens": batch_tokens, "epochs": batch_rows / pool_rows}[unit]
        steps = int(amount / per_step + 1e-9)
    if steps < 1:
        raise ConfigError(
            "the budget does not pay for one optimizer step",
            got=f"budget.{unit}={amount:g}; a step takes {batch_rows} rows, {batch_tokens:.0f} tokens, "
            f"{flops_of(1):.2e} FLOPs",
            do=f"raise budget.{unit}, or lower trainer.global_batch_size",
        )
    return steps


def _affordable(flops: float, flops_of: Callable[[int], float]) -> int:
    """The largest n with flops_of(n) <= flops, by doubling and bisection."""
    if flops_of(1) > flops:
        return 0
    low, high = 1, 2
    while flops_of(high) <= flops:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if flops_of(middle) <= flops else (low, middle)
    return low
