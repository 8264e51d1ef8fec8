"""Parameters that a rank may hold a part of: FSDP2's DTensors, and the empty shells of DeepSpeed's ZeRO-3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def in_parts(value: Tensor) -> bool:
    """Whether this rank holds a part of the tensor alone."""
    return hasattr(value, "full_tensor") or hasattr(value, "ds_numel")


def spread(model: nn.Module) -> bool:
    """Whether ranks hold parts of the model, so that all must call its layers alike."""
    return any(in_parts(p) for p in model.parameters())


def shape_of(value: Tensor) -> torch.Size:
    """The shape of the whole tensor."""
    return torch.Size(value.ds_shape) if hasattr(value, "ds_shape") else value.shape


def whole(value: Tensor) -> Tensor:
    """The whole tensor on every rank, detached. Collective where it is in parts."""
    held: Any = value
    if hasattr(held, "full_tensor"):
        full: Tensor = held.detach().full_tensor()
        return full
    if hasattr(held, "ds_numel"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([held]):
            return value.detach().clone()
    return value.detach()


def put_back(model: nn.Module) -> None:
    """Let go of what FSDP2 has gathered, so that a module's parameters are those that the optimizer knows.

    The outermost group stays gathered after a forward pass, for a backward pass that measuring never makes.
    """
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if reshard is not None and hasattr(module, "unshard"):
            reshard()
