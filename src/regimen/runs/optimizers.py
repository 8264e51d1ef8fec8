"""From `optimizer=` to an optimizer and a learning-rate schedule that ends with the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

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


def make_optimizer(
    settings: Mapping[str, Any], total: int
) -> Callable[[nn.Module], tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]:
    """A function from a model to its optimizer and schedule over `total` steps. Matrices alone get weight decay."""
    fields = {k: v for k, v in settings.items() if k not in ("_target_", "schedule")}
    kind = _optimizer_class(settings.get("_target_"))
    factor = schedule_factor(settings["schedule"], total)

    def make(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        try:
            optimizer = kind([group for group in groups if group["params"]], **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "the optimizer refuses its settings",
                got=f"{error} ({', '.join(f'{k}={v}' for k, v in fields.items())})",
                allowed=f"the arguments of {settings['_target_']}",
                do="correct optimizer.*, or drop an override",
            ) from error
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    make(nn.Linear(1, 1))  # so that settings it refuses are known before the run begins
    return make


def _optimizer_class(target: Any) -> Any:
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except (ImportError, ValueError, TypeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(
            "optimizer._target_ is not an optimizer",
            got=f"optimizer._target_={target}",
            allowed="the full name of a subclass of torch.optim.Optimizer, e.g. torch.optim.AdamW",
        )
    return found
