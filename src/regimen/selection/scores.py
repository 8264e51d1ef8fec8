"""Rows chosen by scores from a file: the best, those that reach a threshold, or rows drawn in proportion to them.

For a draw from a softmax of such scores, give the same signal to `qurating`.
Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector
from regimen.selection.rules import gumbel_top_k, top_k


@dataclass(frozen=True, kw_only=True)
class Scores(AmountSelector):
    """Rows by score.

    by: the scores.
    rule: `top` keeps the highest, `threshold` all that reach it, `proportional` draws rows without replacement, each
        next one with a probability in proportion to its score.
    missing: what a row without a score means: `refuse` stops, `drop` never keeps it.
    threshold: for that rule.
    ratio, count, token_ratio: for the others, one of the three; floor(ratio * n) of the n rows with a score, a number
        of rows, or rows until they hold this part of the target tokens of those n.
    """

    by: Signal
    rule: Literal["top", "threshold", "proportional"] = "top"
    missing: Literal["refuse", "drop"] = "refuse"
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("top", "threshold", "proportional"):
            raise ConfigError("unknown rule", got=f"rule={self.rule}", allowed="top, threshold, proportional")
        if self.missing not in ("refuse", "drop"):
            raise ConfigError("unknown way with missing scores", got=f"missing={self.missing}", allowed="refuse, drop")
        if (self.rule == "threshold") == (self.threshold is None):
            got = f"rule={self.rule}, threshold={self.threshold}"
            raise ConfigError("the rule `threshold` needs a threshold, the others have none", got=got)

    def amount_by(self) -> str | None:
        return "threshold" if self.rule == "threshold" and self.threshold is not None else None

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError for a missing score, or a negative one that a draw cannot use."""
        scores = seen.values[self.by] if self.missing == "drop" else seen.scores(self.by)  # (n,)
        ids, by_id = seen.ids.sort()  # (n,)
        known = ~scores[by_id].isnan()
        ids, by_id = ids[known], by_id[known]  # (m,) that have a score
        scores, tokens = scores[by_id], seen.tokens[by_id]  # (m,)
        if self.threshold is not None:
            return ids[scores >= self.threshold]  # (M,)
        order = top_k(scores, len(ids)) if self.rule == "top" else self._drawn(scores, seen.generator)  # (m,)
        kept = self.kept(tokens[order])
        if self.rule == "proportional" and int((scores > 0).sum()) < kept:
            got = f"{int((scores > 0).sum())} rows with a score above 0, {kept} to keep"
            raise ConfigError("a draw in proportion keeps no row whose score is 0", got=got, do="keep fewer rows")
        return ids[order[:kept]]  # (M,)

    @staticmethod
    def _drawn(scores: Tensor, generator: torch.Generator) -> Tensor:
        """Positions (m,) in the order drawn, rows whose score is 0 last."""
        if bool((scores < 0).any()) or bool(scores.isinf().any()):
            got = f"scores from {float(scores.min())} to {float(scores.max())}"
            raise ConfigError("a draw in proportion needs finite scores of 0 or more", got=got, do="use rule=top")
        return gumbel_top_k(scores.log(), len(scores), generator=generator)  # (m,)
