"""The chunked cross-entropy against PyTorch's: values, gradients, ignored targets, any chunk, bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from regimen.training.cross_entropy import IGNORE, token_losses


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 7, 11, generator=rng) * 4).to(dtype)
    targets = torch.randint(0, 11, (3, 7), generator=rng)
    targets[0, 4:] = IGNORE
    targets[2] = IGNORE
    return logits, targets


@pytest.mark.parametrize("chunk", [1, 4, 20, 21, 1000])
def test_values_and_gradients_equal_pytorch(chunk: int) -> None:
    logits, targets = batch()
    weights = torch.rand(3, 7)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    losses = token_losses(ours, targets, chunk=chunk)
    expected = F.cross_entropy(theirs.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(losses, expected)
    (losses * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not bool(ours.grad[2].any()), "an ignored row has no gradient"


def test_bfloat16_logits_give_float32_losses() -> None:
    logits, targets = batch(torch.bfloat16)
    ours = logits.clone().requires_grad_()
    losses = token_losses(ours, targets, chunk=5)
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert ours.grad is not None and ours.grad.dtype == torch.bfloat16


def test_gradient_by_finite_differences() -> None:
    logits, targets = batch(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: token_losses(x, targets, chunk=6).double(), logits.requires_grad_(), eps=1e-3, atol=1e-3, rtol=1e-3
    )
