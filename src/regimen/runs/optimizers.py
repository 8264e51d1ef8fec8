"""From `optimizer=` to an optimizer and a learning-rate schedule that ends with the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from regimen.core.errors import ConfigError
from regimen.core.schedule import schedule_factor


def make_optimizer(
    settings: Mapping[str, Any], total: int
) -> Callable[[nn.Module], tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]:
    """A function from a model to its optimizer and schedule over `total` steps. Matrices alone get weight decay."""
    fields = {k: v for k, v in settings.items() if k not in ("_target_", "schedule", "average")}
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
