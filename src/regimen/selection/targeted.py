"""Selection for a target set from similarities of rows to its rows: the last step of LESS, RDS+, NEAR and their kin.

Papers: mean over a subtask, maximum over subtasks, LESS, arXiv 2402.04333, section 4.2; round robin, RDS+, arXiv
2503.01807; doubly greedy, unbalanced transport and the comparison of rules: arXiv 2602.14696; rank by rank: NEAR in
DataFlex (OpenDCAI/DataFlex).
Differs from the papers: any signal of similarities goes with any rule; equal values are ranked by id, the lower first.
Letters: n rows to choose from, M target rows, Q columns that rows are ranked by, R neighbours, k rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from regimen.selection.common import AmountSelector, amount
from regimen.selection.neighbours import best_rows
from regimen.selection.rules import doubly_greedy, gumbel_top_k, rank_by_rank, round_robin, top_k
from regimen.selection.transport import unbalanced_transport

Aggregate = Literal["subtask_max", "mean", "max", "subtask"]
Rule = Literal["top", "gumbel", "round_robin", "doubly_greedy", "rank_by_rank", "transport"]

_TO_ONE = ("subtask_max", "mean", "max")  # aggregates that leave one number per row
_OF_ONE = ("top", "gumbel")  # rules that rank rows by one number
_OF_MANY = ("round_robin", "doubly_greedy", "rank_by_rank", "transport")
_ROWS = 8192  # that are looked at for NaN at once


@dataclass(frozen=True, kw_only=True)
class Targeted(AmountSelector):
    """Rows ranked by their similarities to the target rows.

    by: a signal of similarities (n, M), to the target rows or to whatever else it aims at.
    aggregate: what becomes of the M columns. One number per row, for the rules `top` and `gumbel`: `subtask_max`, the
        mean over the rows of each subtask and then the highest mean; `mean`; or `max`. Several, for the other rules:
        `subtask`, the means of the subtasks, or null, the columns as they are.
    rule: `top` keeps the highest; `gumbel` draws without replacement from a softmax; `round_robin` lets columns take
        their best row in turn; `doubly_greedy` keeps the highest to any column; `rank_by_rank` takes the best of every
        column, then every second best; `transport` keeps the rows that most of the target's mass goes to, at a cost
        of (1 - cosine) / 2.
    neighbours: rows that a column can take, of `rank_by_rank`. temperature: of `gumbel`; 0 is `top`.
    epsilon, penalty: of `transport`, the weight of entropy and of how unevenly rows are used.
    ratio, count, token_ratio: how many rows are kept, one of the three: floor(ratio * n), a number of rows, or the
        first until they hold this part of the target tokens of all n.
    """

    by: Signal
    aggregate: Aggregate | None = "subtask_max"
    rule: Rule = "top"
    neighbours: int = 1000
    temperature: float = 1.0
    epsilon: float = 0.01
    penalty: float = 1e-4
    ratio: float | None = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(self.rule, self.aggregate)
        if self.neighbours < 1:
            raise ConfigError("neighbours counts rows per target row", got=self.neighbours, allowed="1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature divides the similarities", got=self.temperature, allowed="0 or more")
        if not (0 < self.epsilon < float("inf") and 0 < self.penalty < float("inf")):
            got = f"epsilon={self.epsilon}, penalty={self.penalty}"
            raise ConfigError("epsilon and penalty are weights of divergences", got=got, allowed="above 0")

    def needs(self) -> tuple[Signal, ...]:
        return (self.by,)

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Ids (k,) int64, best first.

        Raises ConfigError for a similarity that is not finite, an amount that cannot be kept, or subtasks of a target
        set that the pool does not have. Without subtasks, columns may stand for anything that the signal aims at.
        """
        ids, by_id = seen.ids.sort()  # (n,)
        values = ordered(similarities(seen, self.by), by_id)  # (n, M)
        columns = aggregated(values, seen, self.aggregate)  # (n, Q)
        wanted = len(ids) if self.token_ratio is not None else amount(len(ids), self.ratio, self.count)
        order = self._ranked(columns, wanted, seen.generator)  # (k,), or all that the rule can rank
        return ids[order[: self._kept(order, seen.tokens[by_id])]]  # (k,)

    def row_scores(self, state: Any, seen: Observation) -> Tensor:
        """(n,) float64: what `top` and `gumbel` rank by; for other rules the highest similarity to a column."""
        return aggregated(similarities(seen, self.by), seen, self.aggregate).amax(1).double()  # (n,)

    def _ranked(self, columns: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Positions of the best k rows of columns (n, Q), best first."""
        if self.rule == "top":
            return top_k(columns[:, 0], k)
        if self.rule == "gumbel":
            return gumbel_top_k(columns[:, 0], k, generator=generator, temperature=self.temperature)
        if self.rule == "round_robin":
            return round_robin(columns, k)
        if self.rule == "doubly_greedy":
            return doubly_greedy(columns, k)
        if self.rule == "transport":
            cost = (1 - columns.double()) / 2  # (n, Q)
            return top_k(unbalanced_transport(cost, epsilon=self.epsilon, penalty=self.penalty), k)
        found = best_rows(columns, min(self.neighbours, len(columns)))  # (Q, R)
        return rank_by_rank(found, k if self.token_ratio is None else len(torch.unique(found)))

    def _kept(self, order: Tensor, tokens: Tensor) -> int:
        """How many of the ranked rows are kept. tokens: (n,) of all rows."""
        if self.token_ratio is None:
            return len(order)
        rest = torch.ones_like(tokens, dtype=torch.bool)
        rest[order] = False
        kept = self.kept(torch.cat([tokens[order], tokens[rest]]))
        if kept > len(order):
            raise ConfigError(
                "the neighbours of the target rows hold fewer target tokens than are to be kept",
                got=f"{len(order)} distinct neighbours, token_ratio={self.token_ratio}",
                do="raise neighbours, or keep fewer rows",
            )
        return kept


def check_rule(rule: str, aggregate: str | None) -> None:
    """Raises ConfigError for an unknown rule or aggregate, and where the one has no use for the other."""
    if rule not in (*_OF_ONE, *_OF_MANY):
        raise ConfigError("unknown rule of selection", got=f"rule={rule}", allowed=", ".join((*_OF_ONE, *_OF_MANY)))
    if aggregate not in (*_TO_ONE, "subtask", None):
        raise ConfigError(
            "unknown aggregate over the target rows",
            got=f"aggregate={aggregate}",
            allowed=", ".join((*_TO_ONE, "subtask", "null")),
        )
    if (rule in _OF_ONE) != (aggregate in _TO_ONE):
        what = "ranks rows by one number" if rule in _OF_ONE else "wants a column for each target row or subtask"
        allowed = ", ".join(_TO_ONE) if rule in _OF_ONE else "null, subtask"
        raise ConfigError(
            f"rule={rule} {what}",
            got=f"aggregate={'null' if aggregate is None else aggregate}",
            allowed=allowed,
            do=f"set aggregate={allowed.partition(',')[0]}, or another rule",
        )


def target_of(seen: Observation) -> PoolIndex:
    """The target set's rows, whose domains are the subtasks. Raises ConfigError where the pool has none."""
    if seen.target is None:
        raise ConfigError(
            "rows are selected for a target set, and the pool has none",
            do="set dataset.target.path=FILE or dataset.target.from=[domain,...]",
        )
    return seen.target


def similarities(seen: Observation, by: Signal) -> Tensor:
    """Values (n, M) of `by`. Raises ConfigError where it gives one number per row, or any that is not finite."""
    values = seen.values[by]
    if values.dim() != 2:
        raise ConfigError(
            f"{type(by).__name__} does not give a row's similarities to several others",
            got=f"values {tuple(values.shape)}",
            do="use a signal such as Similarity or Influence; method=topk ranks rows by one number",
        )
    broken = torch.cat([~torch.isfinite(part).all(1) for part in torch.split(values, _ROWS)])  # (n,)
    if bool(broken.any()):
        raise ConfigError(
            f"{type(by).__name__} is NaN or infinite for {int(broken.sum())} of {len(values)} rows, which have no rank",
            got=f"ids {seen.ids[broken][:5].tolist()} ...",
            do="look at the loss of these rows: a model that has diverged measures nothing",
        )
    return values


def ordered(values: Tensor, by_id: Tensor) -> Tensor:
    """Values (n, ...) in the order `by_id` (n,). Not copied where they are in it: they may be large, and on disk."""
    return values if bool((by_id[1:] > by_id[:-1]).all()) else values[by_id]


def aggregated(values: Tensor, seen: Observation, aggregate: Aggregate | None) -> Tensor:
    """The columns (n, Q) that rows are ranked by, of values (n, M). A subtask without rows has none.

    Raises ConfigError where there are no subtasks, or the columns are not their rows.
    """
    if aggregate is None:
        return values
    if aggregate == "mean":
        return values.mean(1, keepdim=True, dtype=torch.float64)
    if aggregate == "max":
        return values.amax(1, keepdim=True)
    target = target_of(seen)
    if values.shape[1] != target.rows:
        raise ConfigError(
            f"aggregate={aggregate} takes means over the target rows of a subtask, and the columns are others",
            got=f"{values.shape[1]} columns, {target.rows} target rows",
            do="set aggregate=max or aggregate=mean",
        )
    edges = torch.unique(target.offsets).tolist()  # subtasks own ranges of columns
    parts = [values[:, a:b].mean(1, dtype=torch.float64) for a, b in pairwise(edges)]  # (n,) of each
    means = torch.stack(parts, 1)  # (n, S)
    return means.amax(1, keepdim=True) if aggregate == "subtask_max" else means
