"""DSIR: rows are drawn without replacement in proportion to how much likelier their n-grams are in a target domain.

Paper: Data Selection for Language Models via Importance Resampling, arXiv 2302.03169, and its code.
Differs from the paper: short rows are told by target tokens of the model's tokenizer, not by words; a target that is a
domain of the same pool has rows that are candidates too, unless `target_rows` says otherwise. See also the signal.
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
from regimen.selection.rules import gumbel_top_k
from regimen.signals.ngrams import NgramLogRatio


@dataclass(frozen=True, kw_only=True)
class Dsir(AmountSelector):
    """Gumbel top-k on the log importance of rows.

    by: the log importance, with the domains that are the target.
    target_rows: `compete` treats the target's rows as any others, `drop` never keeps them.
    min_tokens: rows with fewer target tokens are never kept.
    temperature: 1 draws as DSIR does, 0 keeps the highest values.
    ratio, count, token_ratio: how many rows are kept, one of the three: floor(ratio * n), a number of rows, or the
        first drawn until they hold this part of the target tokens of all n.
    """

    by: NgramLogRatio
    target_rows: Literal["compete", "drop"] = "compete"
    min_tokens: int = 100
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_rows not in ("compete", "drop"):
            raise ConfigError("unknown way with the target's rows", got=self.target_rows, allowed="compete, drop")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature divides the log importance", got=self.temperature, allowed="0 or more")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (M,) int64. Raises ConfigError where fewer rows are long enough than are to be kept."""
        ids, by_id = seen.ids.sort()  # (n,)
        allowed = self._allowed(seen)[by_id]  # (n,)
        values = seen.scores(self.by)[by_id]  # (n,)
        logits = torch.where(allowed, values, -torch.inf)  # (n,)
        order = gumbel_top_k(logits, len(ids), generator=seen.generator, temperature=self.temperature)  # (n,)
        kept = self.kept(seen.tokens[by_id][order])  # barred rows are last
        if int(allowed.sum()) < kept:
            raise ConfigError(
                "fewer rows may be kept than are asked for",
                got=f"{int(allowed.sum())} rows that min_tokens={self.min_tokens} and target_rows={self.target_rows} "
                f"leave, {kept} to keep",
                do="lower strategies.dsir.min_tokens, or keep fewer rows",
            )
        return ids[order[:kept]]  # (M,)

    def _allowed(self, seen: Observation) -> Tensor:
        """(n,) bool: rows that may be kept."""
        long = seen.tokens >= self.min_tokens
        if self.target_rows == "compete":
            return long
        wanted = [k for k, name in enumerate(seen.index.domains) if name in (self.by.target or ())]
        return long & ~torch.isin(seen.domain, torch.tensor(wanted))
