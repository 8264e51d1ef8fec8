"""What a selector keeps for each kind of row as its target, measured once for all kinds: of `selection.py`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.signal import Meter
from regimen.core.strategy import Observation, Selection, Selector
from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_pool
from regimen.runs.run import Run
from regimen.signals.ngrams import NgramLogRatio
from regimen.training.callbacks.strategies import SelectionCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.runs import compose_settings


class Found(NamedTuple):
    """precision of the kept rows, NaN where so many could not be kept; how many of them are of each other kind."""

    precision: float
    others: Counter[str]


class Texts:
    """Rows `ids` of a meter, for signals of text; target: the rows that they are compared with."""

    def __init__(self, meter: Meter, ids: Tensor, index: PoolIndex, target: Texts | None = None) -> None:
        self._meter, self._ids, self.index, self.target = meter, ids, index, target

    def texts(self, ids: Tensor) -> list[str]:
        return self._meter.texts(self._ids[ids])


class Measured(pl.Callback):
    """Measures all rows for all targets, and then has the selector decide for each kind alone."""

    def __init__(self, run: Run) -> None:
        self.run, self.found = run, dict[str, Found]()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        context = self.run.context
        placed = self.run.experiment.strategies[0]
        assert isinstance(placed.strategy, Selector)
        callback = SelectionCallback(placed.name, placed.strategy, placed.trigger, context)
        seen = callback.seen(0, torch.arange(context.index.rows))
        for kind in context.index.domains:
            alone = self.for_kind(kind, seen)
            size = int(context.index.sizes[context.index.domains.index(kind)])
            selector = dataclasses.replace(placed.strategy, ratio=None, count=size)
            try:
                chosen = selector.decide(callback.state, alone)
            except ConfigError as error:  # TSDS, where the neighbours of the target rows are fewer than are to be kept
                print(f"{kind}: {error}", file=sys.stderr)
                self.found[kind] = Found(math.nan, Counter())
                continue
            ids = chosen.ids if isinstance(chosen, Selection) else chosen
            if isinstance(chosen, Selection) and chosen.repeats is not None:
                ids = ids.repeat_interleave(chosen.repeats)
            kinds = Counter(context.index.domains[k] for k in context.index.domain_of(ids).tolist())
            self.found[kind] = Found(kinds[kind] / len(ids), Counter({k: c for k, c in kinds.items() if k != kind}))

    def for_kind(self, kind: str, seen: Observation) -> Observation:
        """What would be seen with a target set of this kind alone."""
        assert seen.target is not None and self.run.context.board is not None
        number = seen.target.domains.index(kind)
        rows = seen.target.ids(number)
        tokens = seen.target.tokens_of(rows)
        index = PoolIndex(domains=(kind,), offsets=torch.tensor([0, len(rows)]), target_tokens=tokens)
        values = {}
        for signal, all_values in seen.values.items():
            if isinstance(signal, NgramLogRatio):
                meter = self.run.context.board.meter
                target = Texts(meter.target, rows, index)
                values[signal] = signal.measure(Texts(meter, seen.ids, seen.index, target), seen.ids)
            elif signal in seen.target_values:
                values[signal] = all_values
            else:
                values[signal] = all_values[:, rows]
        generator = torch.Generator().manual_seed(self.run.experiment.settings["seed"])
        of_target = {signal: found[rows] for signal, found in seen.target_values.items()}
        return dataclasses.replace(seen, values=values, target=index, target_values=of_target, generator=generator)


def select(overrides: list[str], folder: Path) -> dict[str, Found]:
    """What a method keeps for each kind."""
    settings = compose_settings(*overrides)
    pool = make_pool(settings, progress=False)
    run = Run(settings, folder, Attempt("begin", None, "score"), pool, None, 0, [])
    measured = Measured(run)
    run.trainer.callbacks[:] = [measured]
    run.trainer.predict(run.module, dataloaders=[0], return_predictions=False)
    return measured.found
