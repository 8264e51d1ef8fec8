"""The signal board: measures each distinct signal once per decision step, and only the rows not measured yet."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.core.signal import DomainSignal, Meter, Signal, Surveyor


class Kept(Protocol):
    """Where values that depend on the pool's text alone outlive a run."""

    def get(self, signal: DomainSignal) -> Tensor | None:
        """The values (K, ...) float64 of a signal, or None where they were never measured."""
        ...

    def put(self, signal: DomainSignal, values: Tensor) -> None:
        """Keep values."""
        ...


class RowsKept(Protocol):
    """Measures rows a part at a time and keeps what took long, so that a kill or another run does not lose it."""

    def measure(self, signal: Signal, meter: Meter, ids: Tensor, *, step: int) -> Tensor:
        """Values (n, ...) of rows `ids` (n,), ascending, under the models as they are after `step` steps."""
        ...


class BoardMeter(Meter, Protocol):
    """A meter that may remember what it measured until it is told that the model has moved on."""

    def know(self, signal: Signal, ids: Tensor, values: Tensor) -> None:
        """Answer for `signal` on rows `ids` (n,), ascending, with values (n, ...)."""
        ...

    def forget(self) -> None:
        """Drop what was measured."""
        ...


class SignalBoard:
    """Values by signal for one step. Equal signals of two strategies share one measurement.

    meter, surveyor: measure rows and domains; collective over ranks, so every rank asks the same. seed: of the run.
    kept: values of signals of text; null measures them anew. rows: measures rows in parts; null all at once.
    """

    def __init__(
        self,
        meter: BoardMeter,
        surveyor: Surveyor,
        *,
        seed: int,
        kept: Kept | None = None,
        rows: RowsKept | None = None,
    ) -> None:
        self.meter, self.surveyor, self.seed, self.kept, self.rows = meter, surveyor, seed, kept, rows
        self._step = -1
        self._measured: dict[Signal, tuple[Tensor, Tensor]] = {}
        self._surveyed: dict[Signal, Tensor] = {}
        self._of_target: dict[Signal, Tensor] = {}

    def values(self, signal: Signal, ids: Tensor, *, step: int) -> Tensor:
        """Values of `signal` under the model as it is after `step` steps.

        (n,) float64 on rows `ids` (n,), (n, d) of vectors; for a signal of domains (K, ...), with `ids` the global
        batch at hand.
        """
        self.turn_to(step)
        if isinstance(signal, DomainSignal):
            if signal not in self._surveyed:
                self._surveyed[signal] = self._survey(signal, ids, step)
            return self._surveyed[signal]
        known_ids, known = self._measured.get(signal, (ids[:0], None))
        missing = torch.unique(ids[~torch.isin(ids, known_ids)])
        if known is None or len(missing):
            measured = self._measure(signal, missing, step)
            if known is None:
                known_ids, known = missing, measured  # in order, and not copied: it may be large and on disk
            else:
                known_ids, known = torch.cat([known_ids, missing]), torch.cat([known, measured])
                order = known_ids.argsort()
                known_ids, known = known_ids[order], known[order]
            self._measured[signal] = (known_ids, known)
        return known if torch.equal(known_ids, ids) else known[torch.searchsorted(known_ids, ids)]

    def target_values(self, signal: Signal, *, step: int) -> Tensor:
        """Values (M, ...) of every row of the target set. Raises ConfigError where the pool has none."""
        self.turn_to(step)
        if signal not in self._of_target:
            target = self.meter.target
            self._of_target[signal] = checked(signal, signal.measure(target, torch.arange(target.index.rows)))
        return self._of_target[signal]

    def _measure(self, signal: Signal, ids: Tensor, step: int) -> Tensor:
        for part in signal.made_of():
            if part.compact:
                self.meter.know(part, ids, self.values(part, ids, step=step))
        if self.rows is None or not len(ids):
            return checked(signal, signal.measure(self.meter, ids))
        return self.rows.measure(signal, self.meter, ids, step=step)

    def _survey(self, signal: DomainSignal, ids: Tensor, step: int) -> Tensor:
        kept = self.kept if signal.of_text else None
        found = None if kept is None else kept.get(signal)
        if found is not None:
            return found
        values = signal.survey(self.surveyor, ids, generator(self.seed, repr(signal), step)).double().cpu()
        if kept is not None:
            kept.put(signal, values)
        return values

    def forget(self) -> None:
        """Drop what was measured: the model has moved within a step."""
        self.turn_to(-1)

    def turn_to(self, step: int) -> None:
        """Drop what was measured before `step`. Whoever asks the meter itself says so first."""
        if step != self._step:
            self._step, self._measured, self._surveyed, self._of_target = step, {}, {}, {}
            self.meter.forget()


def checked(signal: Signal, values: Tensor) -> Tensor:
    """Values on the CPU: numbers (n,) in float64, vectors (n, d) as they came, which must be finite (ConfigError)."""
    values = values.detach().cpu()
    if values.dim() == 1:
        return values.double()
    if not bool(torch.isfinite(values).all()):
        rows = (~torch.isfinite(values)).flatten(1).any(1)
        raise ConfigError(
            f"{type(signal).__name__} is not finite for {int(rows.sum())} of {len(rows)} rows",
            do="look at the loss of these rows: a model that has diverged measures nothing",
        )
    return values
