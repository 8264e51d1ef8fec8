"""Mixture schedule: one mixture after another over the run, e.g. annealing to a high share of the best data at the end.

Source: mid-training and annealing as many reports do it, e.g. Llama 3, arXiv 2407.21783, section 3.4.3.
Letters: K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from torch import Tensor

from regimen.core.checks import check_one_of
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.strategy import Empty, Mixer, Observation
from regimen.mixing.common import INITIAL, finite, initial_shares
from regimen.mixing.fixed import checked_weights, named_shares

OWNER = "strategies.mixture_schedule"


class Stage(NamedTuple):
    """until: part of the run at which it ends. weights: share by domain name, `natural` or `uniform`."""

    until: float
    weights: Mapping[str, float] | str


@dataclass(frozen=True, kw_only=True)
class MixtureSchedule(Mixer):
    """The mixture of the stage that the run is in.

    stages: [{until: part of the run, weights: {domain: share}, or natural, or uniform}, ...]; the last one until 1.
        Names mean domains as in the method `fixed`. Uniform is over the domains that have tokens.
    interpolate: `none` changes at once where a stage ends. `linear` keeps the first mixture until its stage ends; then
        each next mixture is approached in a straight line and reached where its stage ends.
    normalise: divide weights by their sum; without it a sum that is off 1 by more than 0.001 is refused.
    others: domains of the pool that a stage does not name: `refuse` them, or give them `zero`.
    """

    stages: Sequence[Any] | None = None
    interpolate: Literal["none", "linear"] = "none"
    normalise: bool = False
    others: Literal["refuse", "zero"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("interpolate", self.interpolate, ("none", "linear"))
        check_one_of("others, which says what unnamed domains get", self.others, ("refuse", "zero"))
        allowed = "[{until: 0.8, weights: natural}, {until: 1, weights: {web: 0.3, books: 0.7}}]"
        if not self.stages or isinstance(self.stages, (str, Mapping)):
            raise ConfigError("a mixture schedule is a list of stages", got=self.stages, allowed=f"e.g. {allowed}")
        stages = tuple(_stage(stage, self.normalise, allowed) for stage in self.stages)
        ends = [0.0, *(stage.until for stage in stages)]
        if any(b <= a for a, b in pairwise(ends)) or ends[-1] != 1:
            raise ConfigError(
                "stages follow each other to the end of the run",
                got=f"until {', '.join(f'{end:g}' for end in ends[1:])}",
                allowed="above 0, each above the one before, the last one 1",
            )
        object.__setattr__(self, "stages", stages)

    def init(self, index: PoolIndex) -> Empty:
        """No state; domains that do not fit are refused here, before the first step."""
        for place in range(len(self._stages)):
            self._shares(place, index)
        return Empty()

    def decide(self, state: Any, seen: Observation) -> Tensor:
        """Shares (K,) float64."""
        ends = [round(stage.until * seen.total_steps) for stage in self._stages]  # in steps
        ends[-1] = seen.total_steps
        place = next((i for i, end in enumerate(ends) if seen.step < end), len(ends) - 1)
        shares = self._shares(place, seen.index)
        if self.interpolate == "none" or place == 0:
            return shares
        begin = ends[place - 1]
        part = (seen.step - begin) / (ends[place] - begin)
        return (1 - part) * self._shares(place - 1, seen.index) + part * shares

    @property
    def _stages(self) -> tuple[Stage, ...]:
        assert isinstance(self.stages, tuple)
        return self.stages

    def _shares(self, place: int, index: PoolIndex) -> Tensor:
        weights = self._stages[place].weights
        if isinstance(weights, str):
            return initial_shares(weights, index)
        return named_shares(weights, index.domains, others=self.others, owner=OWNER)


def _stage(given: object, normalise: bool, allowed: str) -> Stage:
    """A checked stage from what the user typed."""
    fields = given._asdict() if isinstance(given, Stage) else given
    if not isinstance(fields, Mapping) or set(fields) != {"until", "weights"}:
        raise ConfigError("a stage has the fields until and weights", got=given, allowed=f"e.g. {allowed}")
    until, weights = finite(fields["until"]), fields["weights"]
    if not 0 < until <= 1:
        raise ConfigError("until is a part of the run", got=fields["until"], allowed="0 < until <= 1")
    if isinstance(weights, Mapping):
        return Stage(until, checked_weights(weights, normalise=normalise, owner=OWNER))
    if weights not in INITIAL:
        raise ConfigError(
            "unknown weights of a stage", got=weights, allowed="{domain: share, ...}, or one of " + ", ".join(INITIAL)
        )
    return Stage(until, str(weights))
