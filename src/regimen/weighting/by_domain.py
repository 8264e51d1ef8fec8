"""Weights of rows that give each domain of a batch its share of the loss. Letters: B rows of the batch, K domains."""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.observation import Observation, WeighedBatch


def domain_sizes(batch: WeighedBatch | Observation, reduction: str) -> Tensor:
    """(K,) float64 target tokens, or rows with any under `sample_mean`, of each domain in the batch."""
    count = batch.tokens if reduction == "token_mean" else batch.tokens > 0  # (B,)
    return torch.zeros(len(batch.index.domains), dtype=torch.float64).index_add_(0, batch.domain, count.double())


def domain_means(losses: Tensor, batch: WeighedBatch | Observation, reduction: str) -> Tensor:
    """(K,) float64 mean loss of each domain over its tokens or rows, of rows' mean losses (B,); 0 where it has none."""
    size = domain_sizes(batch, reduction)
    parts = losses.double() * (batch.tokens if reduction == "token_mean" else 1)
    return torch.zeros_like(size).index_add_(0, batch.domain, parts) / size.clamp(min=1)


def domain_coefficients(shares: Tensor, batch: WeighedBatch | Observation, reduction: str) -> Tensor:
    """Coefficients (B,) float64 of rows' mean losses whose weighted sum is sum_k q_k L_k, of shares q (K,)."""
    size = domain_sizes(batch, reduction)
    parts = batch.tokens if reduction == "token_mean" else batch.tokens > 0
    return (shares / size.clamp(min=1))[batch.domain] * parts


def domain_weights(shares: Tensor, batch: WeighedBatch | Observation, reduction: str) -> Tensor:
    """Weights (B,) float64 that make the loss of the step sum_k q_k L_k, of shares q (K,); 0 without target tokens."""
    size = domain_sizes(batch, reduction)
    whole = size.sum() if reduction == "token_mean" else len(batch.ids)
    return (shares * whole / size.clamp(min=1))[batch.domain] * (batch.tokens > 0)
