"""Pacing functions: which part of the rows, from the easy end, may be drawn as training goes on.

Papers: competence, arXiv 1903.09848, equation 7 (linear and root); steps, Bengio et al. 2009 (one) and the baby steps
of Spitkovsky et al. 2010 (several); the comparison of arXiv 2012.03107.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regimen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """The share of rows c(x) from `start` at the beginning to 1 at the part `until` of the run, and 1 from then on.

    With p = min(progress / until, 1), c0 = start:
    kind: `linear` is c0 + (1 - c0) p; `root` is (c0^q + (1 - c0^q) p)^(1/q) with q = `power`, which adds rows fast at
        first; `step` is c0 + (1 - c0) floor(p k) / k with k = `steps`: one step is c0, then all; more are baby steps.
    start: c0, above 0 to 1.
    until: above 0 to 1: a curriculum that ends before the run is a warm-up, after which rows are drawn at random.
    """

    kind: Literal["linear", "root", "step"] = "root"
    start: float = 0.1
    until: float = 0.5
    power: float = 2.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "root", "step"):
            raise ConfigError("unknown pacing", got=f"pacing.kind={self.kind}", allowed="linear, root, step")
        if not (0 < self.start <= 1 and 0 < self.until <= 1):
            raise ConfigError(
                "start is a part of the rows and until a part of the run",
                got=f"pacing.start={self.start}, pacing.until={self.until}",
                allowed="above 0, at most 1",
            )
        if not 0 < self.power < math.inf:
            raise ConfigError("power is the root of the pacing", got=f"pacing.power={self.power}", allowed="above 0")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(
                "steps counts the steps to all rows", got=f"pacing.steps={self.steps}", allowed="1, 2, ..."
            )

    def share(self, progress: float) -> float:
        """c, above 0 to 1, after the part `progress` of the run."""
        part = min(progress / self.until, 1.0)
        if part == 1.0:
            return 1.0
        c0, q = self.start, self.power
        if self.kind == "linear":
            return c0 + (1 - c0) * part
        if self.kind == "root":
            return float((c0**q + (1 - c0**q) * part) ** (1 / q))
        return c0 + (1 - c0) * math.floor(part * self.steps + 1e-9) / self.steps
