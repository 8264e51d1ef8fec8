"""Adam's moments by name of the parameter: of a checkpoint, and of the model in training under any strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regimen.training.parameters import put_back, shape_of, whole
from regimen.training.sketching import Moments

_FIRST, _SECOND = "exp_avg", "exp_avg_sq"  # how torch and DeepSpeed call them


def moments_of(states: Mapping[str, Mapping[str, Any]], group: Mapping[str, Any]) -> Moments | None:
    """From states of an optimizer by name of the parameter, and the settings of a group of it.

    None for an optimizer without moments, or that has not made a step.
    """
    first = {name: state[_FIRST] for name, state in states.items() if _FIRST in state}
    if not first:
        return None
    second = {name: states[name][_SECOND] for name in first}
    return Moments(first, second, tuple(group["betas"]), group["eps"])


def moments_in_training(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments | None:
    """The whole moments on every rank, of the optimizer that trains `model`. Collective where ranks hold parts."""
    group = optimizer.param_groups[0]
    if _is_zero(optimizer):
        return moments_of(_of_zero(model, optimizer), group)
    put_back(model)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)]: state for p, state in optimizer.state.items() if id(p) in names}
    states = {name: {k: whole(state[k]) for k in (_FIRST, _SECOND)} for name, state in held.items() if _FIRST in state}
    return moments_of(states, group)


def _is_zero(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("deepspeed.")


def _of_zero(model: nn.Module, optimizer: Any) -> dict[str, dict[str, Tensor]]:
    """DeepSpeed's own states, empty before the first step."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_get_full_optimizer_state

    inner = optimizer.optimizer
    if not any(_FIRST in state for state in inner.state.values()):
        return {}
    # Stages 1 and 2 link parameters to states when the first group has made its first step, the others' too early.
    flat = getattr(optimizer, "single_partition_of_fp32_groups", ())
    for parameters, partition in zip(getattr(optimizer, "bit16_groups", ()), flat, strict=False):
        lazy_init_hp_params_optimizer_state(parameters, partition, inner.state)
    return {
        name: {key: safe_get_full_optimizer_state(p, key).detach().view(shape_of(p)) for key in (_FIRST, _SECOND)}
        for name, p in model.named_parameters()
        if p.requires_grad
    }
