"""What selectors share: how many rows to keep. `AmountSelector` is where a new one begins.

Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.strategy import Selector


@dataclass(frozen=True, kw_only=True)
class AmountSelector(Selector):
    """A selector that keeps so many of the rows that it chooses from.

    ratio, count, token_ratio: how many, one of the three: floor(ratio * n), a number of rows, or the best until they
        hold this part of the target tokens of all n.
    """

    ratio: float | None = 0.5
    count: int | None = None
    token_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        other, amounts = self.amount_by(), (self.ratio, self.count, self.token_ratio)
        if other is None:
            require_amount(*amounts)
        elif amounts != (None, None, None):
            raise ConfigError(
                f"{other} says how much is kept already",
                got=f"{other}={getattr(self, other)}, ratio={self.ratio}, count={self.count}, "
                f"token_ratio={self.token_ratio}",
                do="set ratio and count to null, token_ratio too",
            )

    def amount_by(self) -> str | None:
        """The name of another setting that says how much is kept; None where the three do."""
        return None

    def init(self, index: PoolIndex) -> Any:
        """The state before the first step. Raises ConfigError for more rows than the pool has, or none."""
        if self.ratio is not None or self.count is not None:
            self.kept(torch.ones(()).expand(min(self.candidates or index.rows, index.rows)))
        return super().init(index)

    def kept(self, tokens: Tensor) -> int:
        """How many of ranked rows are kept, whose target tokens are `tokens` (n,), best first; as `kept_of`."""
        return kept_of(tokens, self.ratio, self.count, self.token_ratio)


def check_amount(ratio: float | None, count: int | None, token_ratio: float | None = None) -> None:
    """Refuse a share outside (0, 1], a count that is not a positive integer, and two of the three (ConfigError)."""
    given = {"ratio": ratio, "count": count, "token_ratio": token_ratio}
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise ConfigError(
            f"{' and '.join(said)} {'both' if len(said) == 2 else 'all'} say how many rows to keep",
            got=", ".join(f"{name}={given[name]}" for name in said),
            allowed="one of them; set the other to null",
        )
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError("ratio is the part of the rows that is kept", got=ratio, allowed="0 < ratio <= 1")
    if token_ratio is not None and not 0 < token_ratio <= 1:
        raise ConfigError(
            "token_ratio is the part of the target tokens that is kept", got=token_ratio, allowed="0 < token_ratio <= 1"
        )
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ConfigError("count is the number of rows that is kept", got=count, allowed="1, 2, 3, ...")


def require_amount(ratio: float | None, count: int | None, token_ratio: float | None = None) -> None:
    """`check_amount`, and one of the three must be given (ConfigError)."""
    check_amount(ratio, count, token_ratio)
    if ratio is None and count is None and token_ratio is None:
        raise ConfigError(
            "how many rows to keep is not said",
            got="ratio=null, count=null",
            allowed="one of the two, or token_ratio where the method has it",
        )


def amount(n: int, ratio: float | None, count: int | None) -> int:
    """Rows to keep out of n: `count`, or floor(ratio * n) with the ratio taken as the decimal that was typed.

    Raises:
        ConfigError: no row would be kept, or `count` is more than n.
    """
    if count is not None and count > n:
        raise ConfigError("count is more than the rows to choose from", got=count, allowed=f"1 to {n}")
    kept = count if count is not None else int(Fraction(str(ratio)) * n)
    if kept == 0:
        raise ConfigError("the ratio keeps no row", got=f"ratio={ratio} of {n} rows", do="raise ratio, or give count")
    return kept


def kept_of(tokens: Tensor, ratio: float | None, count: int | None, token_ratio: float | None) -> int:
    """Rows to keep of ranked rows, whose target tokens are `tokens` (n,), best first.

    By `token_ratio`, as `rows_near` of that part of all tokens does, so that the tokens that two selectors keep
    differ by one row at most; else `amount`.

    Raises:
        ConfigError: as `amount`, or the rows have no target tokens to keep a part of.
    """
    if token_ratio is None:
        return amount(len(tokens), ratio, count)
    total = int(tokens.sum())
    if total == 0:
        raise ConfigError(
            "token_ratio is a part of the target tokens, and the rows to choose from have none",
            got=f"token_ratio={token_ratio} of {len(tokens)} rows",
            do="give ratio or count instead",
        )
    return rows_near(tokens, Fraction(str(token_ratio)) * total)


def rows_near(tokens: Tensor, budget: Fraction) -> int:
    """The fewest of ranked rows (n,) that come nearest to `budget` tokens, of two as near the fewer.

    The row that crosses the budget is in if that is nearer, or if those before it have no token at all. Rows without
    target tokens are kept where they are ranked before the last one that has some. 0 where none has.
    """
    sums = tokens.long().cumsum(0)  # (n,)
    below = int((sums <= int(budget)).sum())  # sums are integers, so the budget may be rounded down
    under = int(sums[below - 1]) if below else 0
    if below < len(sums) and (under == 0 or int(sums[below]) - budget < budget - under):
        return below + 1
    return int((sums < under).sum()) + 1 if under else 0
