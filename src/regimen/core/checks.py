"""Checks of hyper-parameters that many dataclasses share. Each raises ConfigError."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regimen.core.errors import ConfigError


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a setting that is none of the allowed words."""
    if value not in allowed:
        raise ConfigError(f"unknown value of {name}", got=value, allowed=", ".join(allowed))


def check_counts(of: object, *names: str) -> None:
    """Refuse fields of `of` that are not whole numbers of 1 or more."""
    for name in names:
        value = getattr(of, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"{name} of {type(of).__name__} is a number of things", got=f"{name}={value}", allowed="1, 2, ..."
            )


def check_positive(of: object, *names: str) -> None:
    """Refuse fields of `of` that are not above 0 and finite."""
    for name in names:
        value = getattr(of, name)
        if not 0 < value < math.inf:
            raise ConfigError(
                f"{name} of {type(of).__name__} must be positive", got=f"{name}={value}", allowed="above 0"
            )


def check_polarity(polarity: object) -> None:
    """Refuse a polarity that is neither 1 nor -1."""
    if polarity not in (1, -1):
        raise ConfigError("polarity says which scores are good", got=polarity, allowed="1 (high ones), -1 (low ones)")
