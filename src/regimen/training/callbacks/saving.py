"""At which steps checkpoints are saved for good."""

from __future__ import annotations

from collections.abc import Sequence


def milestones(fractions: Sequence[float], total: int) -> set[int]:
    """Steps of a run of `total` at fractions of it, e.g. [0.25, 0.5, 0.75, 1]."""
    return {max(round(fraction * total), 1) for fraction in fractions}
