"""When a strategy decides. A step is the number of optimizer steps done; step 0 is before the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regimen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """Base of the triggers: the steps at which a decision is made."""

    def fires(self, step: int, total: int) -> bool:
        """Whether a decision is due after `step` of `total` optimizer steps."""
        raise NotImplementedError(type(self).__name__)

    def following(self, step: int, total: int) -> int:
        """The next step after `step` at which a decision is due, or `total`."""
        return next((s for s in range(step + 1, total) if self.fires(s, total)), total)

    def count(self, total: int) -> int:
        """How many decisions a run of `total` steps makes."""
        return sum(self.fires(step, total) for step in range(total))


@dataclass(frozen=True, kw_only=True)
class Once(Trigger):
    """One decision, after `at` steps (0: before training)."""

    at: int = 0

    def __post_init__(self) -> None:
        if self.at < 0:
            raise ConfigError("when.at counts optimizer steps", got=self.at, allowed="0 or more")

    def fires(self, step: int, total: int) -> bool:
        return step == self.at


@dataclass(frozen=True, kw_only=True)
class Every(Trigger):
    """A decision every `steps` optimizer steps from step `start` on."""

    steps: int
    start: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.start < 0:
            raise ConfigError(
                "when.steps and when.start count optimizer steps",
                got=f"steps={self.steps}, start={self.start}",
                allowed="steps of 1 or more, start of 0 or more",
            )

    def fires(self, step: int, total: int) -> bool:
        return step >= self.start and (step - self.start) % self.steps == 0 and step < total


@dataclass(frozen=True, kw_only=True)
class AtFractions(Trigger):
    """A decision at each fraction of the run, e.g. `[0, 0.25, 0.5]`. 0 is before training."""

    fractions: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(float(f) for f in self.fractions))
        if any(not 0 <= f < 1 for f in self.fractions):
            raise ConfigError("when.fractions are parts of the run", got=list(self.fractions), allowed="0 <= f < 1")

    def fires(self, step: int, total: int) -> bool:
        return step in {round(f * total) for f in self.fractions}
