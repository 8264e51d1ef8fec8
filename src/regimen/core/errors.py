"""Errors that a user can act on: what is wrong, what was given, what is allowed, what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RegimenError(Exception):
    """An error for the user's screen. The command line prints it without a traceback and exits with 1."""

    def __init__(self, what: str, *, got: object = None, allowed: object = None, do: str | None = None) -> None:
        lines = [what]
        if got is not None:
            lines.append(f"  got:     {got}")
        if allowed is not None:
            lines.append(f"  allowed: {allowed}")
        if do is not None:
            lines.append(f"  do:      {do}")
        super().__init__("\n".join(lines))
        self.what = what


class ConfigError(RegimenError):
    """A setting that cannot work. Raised before training wherever it can be known before."""


class DataError(RegimenError):
    """Input text or a prepared pool that cannot be used as it is."""


class RunError(RegimenError):
    """A run that had to stop: a loss that is not a number, a disk that is full."""


def closest(word: str, known: Iterable[str]) -> str:
    """`", did you mean X?"` for the known word nearest to `word`, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {match[0]!r}?" if match else ""
