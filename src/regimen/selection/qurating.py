"""QuRating: rows are drawn without replacement from a softmax of quality scores: good text, but not only the best.

Paper: QuRating, arXiv 2402.09739, section 3.3, and its code: scores to mean 0 and variance 1, a temperature of 2.
Differs from the paper: any signal can be the score; the paper's is a rater trained on a large model's judgments, whose
scores a file can bring in. A constant score is a uniform draw. A budget may be given in rows as well as in tokens.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector, amount, check_amount, rows_near
from regimen.selection.rules import gumbel_top_k


@dataclass(frozen=True, kw_only=True)
class QuRating(AmountSelector):
    """Gumbel top-k on standardised scores.

    by: the score. polarity: 1 where high scores are good, -1 where low ones are.
    temperature: of the softmax; 0 keeps the best rows, a large one draws uniformly.
    per_domain: keep the same part of each domain, best within it, instead of the best of all.
    ratio, count, token_ratio, tokens: how much is kept, one of the four: floor(ratio * n) rows, a number of rows, rows
        until they hold this part of the target tokens of all n (nearest), or rows until their target tokens reach this
        number. `per_domain` splits rows by rows, tokens by tokens; each domain that has some keeps a row.
    """

    by: Signal
    polarity: int = 1
    temperature: float = 2.0
    per_domain: bool = False
    tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_amount(None, self.tokens)
        if self.polarity not in (1, -1):
            raise ConfigError("polarity says which scores are good", got=self.polarity, allowed="1 (highest), -1")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature divides the scores", got=self.temperature, allowed="0 or more")

    def amount_by(self) -> str | None:
        return None if self.tokens is None else "tokens"

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError for a score that is not finite or an amount that cannot be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        scores = self.polarity * seen.scores(self.by)[by_id]  # (n,)
        if not bool(torch.isfinite(scores).all()):
            raise ConfigError(f"{self.by} is infinite for some rows, so it has no mean", do="use another signal")
        scores = (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-12)  # (n,)
        order = gumbel_top_k(scores, len(ids), generator=seen.generator, temperature=self.temperature)  # (n,)
        domain = seen.domain[by_id][order] if self.per_domain else torch.zeros_like(order)  # (n,)
        groups = [(domain == k).nonzero()[:, 0] for k in range(int(domain.max()) + 1)]
        kept = self._kept([seen.tokens[by_id][order[group]] for group in groups])
        return ids[torch.cat([order[group[:k]] for group, k in zip(groups, kept, strict=True)])]  # (M,)

    def _kept(self, groups: Sequence[Tensor]) -> list[int]:
        """Rows to keep of each group, from the target tokens of its rows, best first."""
        if self.token_ratio is not None:
            part = Fraction(str(self.token_ratio))
            return [rows_near(tokens, part * int(tokens.sum())) for tokens in groups]
        if self.tokens is None:
            sizes = [len(tokens) for tokens in groups]
            return apportioned(amount(sum(sizes), self.ratio, self.count), sizes)
        total = sum(int(tokens.sum()) for tokens in groups)
        if self.tokens > total:
            raise ConfigError("tokens is more than there is to choose from", got=self.tokens, allowed=f"1 to {total}")
        budgets = [Fraction(self.tokens * int(tokens.sum()), total) for tokens in groups]
        befores = [tokens.cumsum(0) - tokens for tokens in groups]
        # A row is kept if those before it do not fill the budget: the last one reaches it.
        return [int((before < ceil(budget)).sum()) for before, budget in zip(befores, budgets, strict=True)]


def apportioned(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` split in proportion to `sizes`, rounded by largest remainder, ties to the first."""
    exact = [Fraction(total * size, max(sum(sizes), 1)) for size in sizes]
    parts = [floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: (parts[k] - exact[k], k))
    for k in by_remainder[: total - sum(parts)]:
        parts[k] += 1
    return parts
