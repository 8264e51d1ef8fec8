"""What a strategy may know of a pool: its domains, and which rows and how many target tokens each one has.

Letters: N rows of the pool, K domains, n rows asked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolIndex:
    """Rows are numbered so that each domain owns one range: domain k holds ids `offsets[k]` to `offsets[k+1]-1`.

    domains: names, sorted; every vector over domains in the project is in this order.
    offsets: (K+1,) int64, starting at 0.
    target_tokens: (N,) int32 target tokens of each row, or an int where all rows have the same number.
    fingerprint: of the pool that this describes.
    input_tokens: (N,) int32 tokens of each row that a model reads, prompts included; None where each has a target.
    """

    domains: tuple[str, ...]
    offsets: Tensor
    target_tokens: Tensor | int
    fingerprint: str = ""
    input_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        assert tuple(sorted(self.domains)) == self.domains, self.domains
        assert self.offsets.shape == (len(self.domains) + 1,)

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return int(self.offsets[-1])

    @property
    def sizes(self) -> Tensor:
        """(K,) int64 rows per domain."""
        return self.offsets.diff()

    def ids(self, domain: int) -> Tensor:
        """(n,) int64 ids of the rows of one domain."""
        return torch.arange(int(self.offsets[domain]), int(self.offsets[domain + 1]))

    def domain_of(self, ids: Tensor) -> Tensor:
        """(n,) int64 domain number of each id."""
        return torch.bucketize(ids, self.offsets[1:], right=True)

    def tokens_of(self, ids: Tensor) -> Tensor:
        """(n,) int64 target tokens of each row."""
        if isinstance(self.target_tokens, int):
            return torch.full_like(ids, self.target_tokens)
        return self.target_tokens[ids].long()

    def inputs_of(self, ids: Tensor) -> Tensor:
        """(n,) int64 tokens of each row that a model reads."""
        return self.tokens_of(ids) if self.input_tokens is None else self.input_tokens[ids].long()

    def domain_tokens(self) -> Tensor:
        """(K,) float64 target tokens per domain."""
        return self._domain_tokens.clone()

    @cached_property
    def _domain_tokens(self) -> Tensor:
        """Counted once: a mixture asks for them with every batch. Whole numbers, so that no rounding depends on how."""
        if isinstance(self.target_tokens, int):
            return self.sizes.double() * self.target_tokens
        per_row, ends = self.target_tokens.numpy(), self.offsets.tolist()  # NumPy widens as it adds, with no copy
        sums = [int(per_row[a:b].sum(dtype=np.int64)) for a, b in itertools.pairwise(ends)]
        return torch.tensor(sums, dtype=torch.float64)

    def natural(self) -> Tensor:
        """(K,) float64 share of the pool's target tokens that each domain holds."""
        tokens = self.domain_tokens()
        return tokens / tokens.sum()

    def kept(self, ids: Tensor) -> PoolIndex:
        """The same domains with the rows `ids` (M,) alone, renumbered: for shares and sizes, not for ids."""
        ids = ids.sort().values
        sizes = torch.bincount(self.domain_of(ids), minlength=len(self.domains))
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        tokens = self.target_tokens if isinstance(self.target_tokens, int) else self.target_tokens[ids]
        inputs = None if self.input_tokens is None else self.input_tokens[ids]
        return PoolIndex(
            domains=self.domains,
            offsets=offsets,
            target_tokens=tokens,
            fingerprint=self.fingerprint,
            input_tokens=inputs,
        )

    def mean_tokens(self) -> Tensor:
        """(K,) float64 mean target tokens per row of each domain (1 where a domain is empty)."""
        return torch.where(self.sizes > 0, self.domain_tokens() / self.sizes.clamp(min=1), 1.0)
