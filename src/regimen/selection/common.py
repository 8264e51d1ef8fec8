"""What selectors share: how many rows to keep.

Letters: n rows to choose from, M kept.
"""

from __future__ import annotations

from fractions import Fraction

from regimen.core.errors import ConfigError


def check_amount(ratio: float | None, count: int | None) -> None:
    """Refuse a ratio outside (0, 1], a count that is not a positive integer, and both at once (ConfigError)."""
    if ratio is not None and count is not None:
        raise ConfigError(
            "ratio and count both say how many rows to keep",
            got=f"ratio={ratio}, count={count}",
            allowed="one of them; set the other to null",
        )
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError("ratio is the part of the rows that is kept", got=ratio, allowed="0 < ratio <= 1")
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ConfigError("count is the number of rows that is kept", got=count, allowed="1, 2, 3, ...")


def require_amount(ratio: float | None, count: int | None) -> None:
    """`check_amount`, and one of the two must be given (ConfigError)."""
    check_amount(ratio, count)
    if ratio is None and count is None:
        raise ConfigError("how many rows to keep is not said", got="ratio=null, count=null", allowed="one of the two")


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
