"""The bare PyTorch loop that regimen is measured against: one step of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bare_step(
    model: nn.Module, tokens: Tensor, optimizer: torch.optim.Optimizer, schedule: Any, *, half: bool = False
) -> Tensor:
    """One step on rows of tokens (B, L+1), gradients clipped at 1. Returns the loss. half: autocast to bfloat16."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss
