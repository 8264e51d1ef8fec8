"""The network that reads the rows of a batch as a set and scores each beside the others.

A transformer without positions over the batch, so that the order of rows does not matter, with a last layer that starts
at zero: before it has learnt, all scores are 0. Its architecture is ours; DWM (arXiv 2507.16178) gives none.
Letters: n rows, d width, F numbers per row, T tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class Shape(NamedTuple):
    """inputs: F numbers per row, or the T tokens of a row of which the model reads ids where `buckets` is above 0.

    buckets: embeddings that token ids are hashed to. width, layers, heads: of the encoder over the batch.
    normalise: whether numbers are normalised row by row, for those of one kind such as hidden states.
    """

    inputs: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    buckets: int = 0
    normalise: bool = False


def new_parameters(shape: Shape, *, seed: int) -> dict[str, Tensor]:
    """Parameters by name, drawn by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: p.detach() for name, p in WeightingModel(shape).named_parameters()}


def scores_of(parameters: Mapping[str, Tensor], shape: Shape, rows: Tensor, present: Tensor) -> Tensor:
    """Scores (n,) of rows, (n, F) numbers or (n, T) token ids, -1 past the end. present (n,) bool: those that count."""
    scores: Tensor = functional_call(_skeleton(shape), dict(parameters), (rows, present))
    return scores


@functools.lru_cache(maxsize=4)
def _skeleton(shape: Shape) -> WeightingModel:
    with torch.device("meta"):
        return WeightingModel(shape)


class WeightingModel(nn.Module):
    """Scores (n,) of the rows of a batch."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.tokens: TokenReader | None = TokenReader(shape) if shape.buckets else None
        read = width if shape.buckets else shape.inputs
        self.level = nn.LayerNorm(read) if shape.normalise or shape.buckets else nn.Identity()
        self.read = nn.Linear(read, width)
        self.blocks = nn.ModuleList(Block(width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        states = self.read(self.level(rows if self.tokens is None else self.tokens(rows)))[None]  # (1, n, d)
        for block in self.blocks:
            states = block(states, present[None])
        scores: Tensor = self.head(self.norm(states[0]))[:, 0]  # (n,)
        return scores


class TokenReader(nn.Module):
    """From token ids (n, T), -1 past the end, to a vector (n, d) per row: two layers with positions, and a mean."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.buckets = shape.buckets
        self.embedding = nn.Embedding(shape.buckets, shape.width)
        self.positions = nn.Embedding(shape.inputs, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(2))

    def forward(self, rows: Tensor) -> Tensor:
        known = rows >= 0  # (n, T)
        known[:, :1] = True  # a row without tokens reads its first place, and is not counted later
        places = torch.arange(rows.shape[1], device=rows.device)
        states = self.embedding(rows.clamp(min=0) % self.buckets) + self.positions(places)  # (n, T, d)
        for block in self.blocks:
            states = block(states, known)
        mask = known[..., None].to(states)
        pooled: Tensor = (states * mask).sum(1) / mask.sum(1)  # (n, d)
        return pooled


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(b, L, d) of states (b, L, d); mask (b, L) bool: places that are looked at."""
        b, length, width = states.shape
        q, k, v = self.qkv(self.before(states)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (b, heads, L, d / heads)
        states = states + self.out(seen.transpose(1, 2).reshape(b, length, width))
        out: Tensor = states + self.down(F.gelu(self.up(self.between(states))))
        return out
