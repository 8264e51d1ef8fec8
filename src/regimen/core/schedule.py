"""Learning-rate schedules, which end with the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from regimen.core.errors import ConfigError

SCHEDULES = ("cosine", "linear", "wsd", "constant")


def schedule_factor(schedule: Mapping[str, Any], total: int) -> Callable[[int], float]:
    """The learning rate of step t (0-based) as a part of its peak.

    Warm-up is linear from peak/n in the first of n warm-up steps. The last step has exactly the `final` part.
    """
    kind, warmup, final = schedule["kind"], float(schedule["warmup"]), float(schedule["final"])
    if kind not in SCHEDULES:
        raise ConfigError("unknown schedule", got=f"optimizer.schedule.kind={kind}", allowed=", ".join(SCHEDULES))
    if warmup < 0 or not 0 <= final <= 1 or not 0 < float(schedule["decay"]) <= 1:
        raise ConfigError(
            "the schedule's parts are out of range", got=dict(schedule), allowed="warmup >= 0, final 0..1, decay 0..1"
        )
    rise = int(warmup) if warmup >= 1 else round(warmup * total)
    fall_from = total - round(float(schedule["decay"]) * total) if kind == "wsd" else rise

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        if kind == "constant" or step < fall_from:
            return 1.0
        done = min((step - fall_from) / max(total - 1 - fall_from, 1), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
        return final + (1 - final) * shape

    return factor
