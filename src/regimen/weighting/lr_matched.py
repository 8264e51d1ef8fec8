"""LR-matched: plain training that steps as far as another, weighted run did. A control: what weights do beyond scale.

Not from a paper. A weighter whose weights do not have mean 1 changes the learning rate in effect: by the factor
    m = sum_i w_i s_i,   s_i the part of row i in the plain loss, sum 1,
which each step of a run writes to its metrics as `effective_lr_multiplier`. This control trains without weights on m
times the learning rate. Under SGD without clipping that is what weights of the same sum do on average; under Adam,
which is blind to m as long as it hardly changes, it is the upper bound of what the scale alone could have done.
Letters: n rows, T optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.files import read_json_lines
from regimen.core.index import PoolIndex
from regimen.core.strategy import WeighedBatch, Weighter

_COLUMN = "effective_lr_multiplier"


class LrMatchedState(NamedTuple):
    """multipliers: (T,) float64 of each step; (1,) where all steps have the same."""

    multipliers: Tensor


@dataclass(frozen=True, kw_only=True)
class LrMatched(Weighter):
    """Weighs every row alike and scales the learning rate.

    multiplier: m, 0 or more; null where `run` tells it.
    run: folder of a run that was weighted, whose metrics are read once; null where `multiplier` is given.
    match: the `mean` of m over that run, or m of every `step`; that run must then be as long as this one.
    scale: what m multiplies: the learning rate, `lr`, decoupled weight decay with it; or the `loss`, which Adam and
        clipping may undo.
    """

    multiplier: float | None = None
    run: str | None = None
    match: Literal["mean", "step"] = "mean"
    scale: Literal["lr", "loss"] = "lr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.multiplier is None) == (self.run is None):
            raise ConfigError(
                "either a number or a run says how far to step",
                got=f"strategies.lr_matched.multiplier={self.multiplier}, strategies.lr_matched.run={self.run}",
                do="set strategies.lr_matched.run=FOLDER_OF_A_WEIGHTED_RUN, or strategies.lr_matched.multiplier=0.5",
            )
        if self.multiplier is not None and not 0 <= self.multiplier < math.inf:
            raise ConfigError("multiplier is a factor", got=self.multiplier, allowed="0 or more")
        for name, value, allowed in (("match", self.match, ("mean", "step")), ("scale", self.scale, ("lr", "loss"))):
            if value not in allowed:
                raise ConfigError(f"unknown {name} of lr_matched", got=value, allowed=", ".join(allowed))

    def init(self, index: PoolIndex) -> LrMatchedState:
        """Raises ConfigError where the run's metrics are not there, or do not tell the multiplier."""
        if self.run is None:
            return LrMatchedState(torch.tensor([self.multiplier], dtype=torch.float64))
        found = multipliers_of(Path(self.run).expanduser())  # (T,)
        return LrMatchedState(found.mean()[None] if self.match == "mean" else found)

    def weigh(self, state: LrMatchedState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights (n,), all alike. Raises ConfigError where the run to match was shorter than this one."""
        if 1 < len(state.multipliers) < batch.total_steps:
            raise ConfigError(
                "the run to match is shorter than this one",
                got=f"{len(state.multipliers)} steps for {batch.total_steps}",
                do="set strategies.lr_matched.match=mean, or train for as many steps",
            )
        return torch.full_like(losses, self._at(state, batch.step) if self.scale == "loss" else 1.0)

    def learning_rate_factor(self, state: LrMatchedState, step: int) -> float:
        """m, where the learning rate is scaled."""
        return self._at(state, step) if self.scale == "lr" else 1.0

    def shows(self, state: LrMatchedState, index: PoolIndex) -> dict[str, Any]:
        """The mean of m over the steps, and what it scales."""
        return {"multiplier": float(state.multipliers.mean()), "scale": self.scale}

    def _at(self, state: LrMatchedState, step: int) -> float:
        return float(state.multipliers[min(step, len(state.multipliers) - 1)])


def multipliers_of(folder: Path) -> Tensor:
    """(T,) float64: the effective learning-rate multiplier of each step of a run. Raises ConfigError without any."""
    path = folder / "metrics.jsonl"
    rows = read_json_lines(path) if path.is_file() else []
    found = [row[_COLUMN] for row in rows if row["split"] == "train" and _COLUMN in row]
    if not found:
        raise ConfigError(
            "the run to match does not tell its effective learning-rate multiplier",
            got=f"strategies.lr_matched.run={folder}",
            allowed=f"the folder of a run with {_COLUMN} in its metrics.jsonl",
            do="train it again with this version, or set strategies.lr_matched.multiplier",
        )
    return torch.tensor(found, dtype=torch.float64)
