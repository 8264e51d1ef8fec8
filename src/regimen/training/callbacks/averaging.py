"""Averages of the weights along training, evaluated and exported in place of the last weights.

Sources: the uniform mean, Polyak and Juditsky 1992, stochastic weight averaging arXiv 1803.05407 and the merging of
checkpoints instead of a decaying rate, arXiv 2507.17634; the exponential one as usual.
Training goes on from its own weights: an average changes no step of it. Signals are measured under the own weights too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.training.context import RunContext

KINDS = ("none", "mean", "ema")
_WHOLE = ("SingleDeviceStrategy", "DDPStrategy")  # of Lightning: every rank holds every weight


class AverageWeights(pl.Callback):
    """Averages what is trained of `model` after every step beyond `start`, in float32.

    kind: `mean` weighs all these steps alike; `ema` is d a + (1 - d) w with d = `decay`, and starts as the first of
        them; `none` does nothing.
    start: part of the run; 1 or more: steps. Raises ConfigError where no step is left, or weights are sharded.
    """

    state_key = "averaging"

    def __init__(self, context: RunContext, model: nn.Module, *, kind: str, start: float, decay: float) -> None:
        total = context.total_steps
        self.context, self.model, self.kind, self.decay = context, model, kind, decay
        self.first = (int(start) if start >= 1 else round(start * total)) + 1  # step whose weights are the first
        self.count = 0
        self._average: dict[str, Tensor] = {}  # by the name of a parameter, once for those that share a tensor
        if kind != "none" and self.first > total:
            raise ConfigError(
                "weights would be averaged after the end of the run alone",
                got=f"optimizer.average.start={start} in a run of {total} steps",
                do="lower optimizer.average.start, or raise the budget",
            )

    @property
    def settings(self) -> dict[str, Any] | None:
        """What is averaged, for the summary; None where nothing is."""
        if self.kind == "none":
            return None
        told = {"kind": self.kind, "from_step": self.first, "steps": self.count}
        return {**told, "decay": self.decay} if self.kind == "ema" else told

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.kind != "none" and type(trainer.strategy).__name__ not in _WHOLE:
            raise ConfigError(
                "weights that are sharded over processes cannot be averaged",
                got=f"optimizer.average.kind={self.kind}, trainer.strategy={type(trainer.strategy).__name__}",
                allowed="one device, or trainer=ddp",
                do="set optimizer.average.kind=none, e.g. with optimizer.schedule.kind=wsd",
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = self.context.step
        if self.kind == "none" or step is None or step.number < self.first:
            return
        self.count += 1
        for name, weight in self._trained():
            new = weight.detach().float()
            if self.count == 1:
                self._average[name] = new.clone()
                continue
            average = self._average[name] = self._average[name].to(new.device)
            average.lerp_(new, 1 / self.count if self.kind == "mean" else 1 - self.decay)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the weights; the weights come back bit for bit."""
        if not self.count:
            yield
            return
        own = {name: p.detach().clone() for name, p in self._trained()}
        try:
            self._put(self._average)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self._trained():
            p.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        names = {id(p): name for name, p in self._trained()}
        shared = [
            (name, names[id(p)]) for name, p in self.model.named_parameters(remove_duplicate=False) if id(p) in names
        ]
        weights = {name: self._average[first] for name, first in shared} if self.count else {}
        return {"count": self.count, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        self._average = {name: state_dict["weights"][name] for name, _ in self._trained()} if self.count else {}


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """By their keys in its `state_dict`, the averages that a checkpoint holds; empty where it holds none."""
    weights = checkpoint.get("callbacks", {}).get(AverageWeights.state_key, {}).get("weights", {})
    return {f"model.{name}": value for name, value in weights.items()}
