"""Natural: every row as often as every other, the baseline of every mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from regimen.core.strategy import Mixer, Observation


@dataclass(frozen=True, kw_only=True)
class Natural(Mixer):
    """No mixture: the pool is one shuffled sequence, so `draw` and `draw_groups` have no effect."""

    def decide(self, state: Any, seen: Observation) -> Tensor | None:
        """None, which stands for a plain shuffle of all rows."""
        return None
