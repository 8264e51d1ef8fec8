"""From a resolved configuration to everything a run consists of. `check` stops before the trainer is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regimen.core.errors import ConfigError
from regimen.core.stream import Stream
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.runs.budget import total_steps
from regimen.runs.models import make_model
from regimen.runs.strategies import Placed, make_strategies
from regimen.training.cost import BACKWARD, forward_flops


@dataclass
class Experiment:
    """A run before its trainer: data, strategies, model and the length of the training."""

    settings: Mapping[str, Any]
    pool: Pool
    strategies: list[Placed]
    model: nn.Module
    steps: int
    flops_per_token: float  # of a forward pass

    @property
    def batch_rows(self) -> int:
        """Rows of a global batch."""
        return int(self.settings["trainer"]["global_batch_size"])

    @property
    def batch_tokens(self) -> float:
        """Mean target tokens of a global batch."""
        index = self.pool.train.index
        return self.batch_rows * float(index.domain_tokens().sum()) / index.rows

    def measured_rows(self, steps: int) -> dict[str, float]:
        """Rows that each strategy has measured in a run of `steps` steps, in forward passes over a row."""
        return {p.name: _measured(p, steps, self.batch_rows, self.pool.train.index.rows) for p in self.strategies}

    def flops(self, steps: int) -> float:
        """Model FLOPs of training and measuring in a run of `steps` steps."""
        training = steps * self.batch_tokens * (1 + BACKWARD)
        measuring = sum(self.measured_rows(steps).values()) * self.batch_tokens / self.batch_rows
        return (training + measuring) * self.flops_per_token

    def stream(self) -> Stream:
        """The stream of a new run. Raises ConfigError where the budget exceeds the repetition cap."""
        return Stream(
            self.pool.train.index,
            seed=self.settings["seed"],
            batch_size=self.batch_rows,
            total_steps=self.steps,
            max_epochs=self.settings["dataset"]["max_epochs_per_domain"],
        )


def _measured(placed: Placed, steps: int, batch_rows: int, pool_rows: int) -> float:
    strategy, trigger = placed.strategy, placed.trigger
    forwards = sum(signal.forwards for signal in strategy.needs())
    if trigger is None or not forwards or strategy.kind == "mixer":
        return 0.0
    fired = [step for step in range(steps) if trigger.fires(step, steps)] if steps < 100_000 else []
    if not fired:
        return forwards * trigger.count(steps) * pool_rows
    if strategy.kind == "selector":
        rows = min(getattr(strategy, "candidates", None) or pool_rows, pool_rows)
        return forwards * len(fired) * rows
    return forwards * sum(min((steps - step) * batch_rows, pool_rows) for step in fired)


def make_pool(settings: Mapping[str, Any], *, progress: bool) -> Pool:
    """The prepared pool of `dataset.*`, prepared now where it is not there yet."""
    root = Path(settings["paths"]["pools"]).expanduser()
    path = prepare(settings["dataset"], root=root, progress=progress)
    assert path is not None, "one shard of one makes a whole pool"
    return Pool.open(path)


def make_experiment(settings: Mapping[str, Any], pool: Pool, *, meta: bool = False) -> Experiment:
    """Build a run. meta: shapes only, no memory for the model (for `check`)."""
    rows = settings["trainer"]["global_batch_size"]
    if not isinstance(rows, int) or rows < 1:
        raise ConfigError("trainer.global_batch_size counts rows", got=rows, allowed="1 or more")
    strategies = make_strategies(settings["strategies"])
    with torch.device("meta" if meta else "cpu"):
        model = make_model({**settings["model"], "compile": settings["model"]["compile"] and not meta}, pool)
    experiment = Experiment(settings, pool, strategies, model, 0, forward_flops(model, pool.seq_len))
    experiment.steps = total_steps(
        settings["budget"],
        batch_rows=experiment.batch_rows,
        batch_tokens=experiment.batch_tokens,
        pool_rows=pool.train.index.rows,
        flops_of=experiment.flops,
    )
    return experiment
