"""The signal board: measures each distinct signal once per decision step, and only the rows not measured yet."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

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


class SignalBoard:
    """Values by signal for one step. Equal signals of two strategies share one measurement.

    meter, surveyor: measure rows and domains; collective over ranks, so every rank asks the same. seed: of the run.
    kept: values of signals of text; null measures them anew.
    """

    def __init__(self, meter: Meter, surveyor: Surveyor, *, seed: int, kept: Kept | None = None) -> None:
        self.meter, self.surveyor, self.seed, self.kept = meter, surveyor, seed, kept
        self._step = -1
        self._measured: dict[Signal, tuple[Tensor, Tensor]] = {}
        self._surveyed: dict[Signal, Tensor] = {}

    def values(self, signal: Signal, ids: Tensor, *, step: int) -> Tensor:
        """Values of `signal` under the model as it is after `step` steps.

        (n,) float64 on rows `ids` (n,); for a signal of domains (K, ...), with `ids` the global batch at hand.
        """
        self._turn_to(step)
        if isinstance(signal, DomainSignal):
            if signal not in self._surveyed:
                self._surveyed[signal] = self._survey(signal, ids, step)
            return self._surveyed[signal]
        known_ids, known = self._measured.get(signal, (ids[:0], torch.empty(0, dtype=torch.float64)))
        missing = torch.unique(ids[~torch.isin(ids, known_ids)])
        if len(missing):
            known_ids = torch.cat([known_ids, missing])
            known = torch.cat([known, signal.measure(self.meter, missing).double().cpu()])
            order = known_ids.argsort()
            known_ids, known = known_ids[order], known[order]
            self._measured[signal] = (known_ids, known)
        return known[torch.searchsorted(known_ids, ids)]

    def _survey(self, signal: DomainSignal, ids: Tensor, step: int) -> Tensor:
        kept = self.kept if signal.of_text else None
        found = None if kept is None else kept.get(signal)
        if found is not None:
            return found
        values = signal.survey(self.surveyor, ids, generator(self.seed, repr(signal), step)).double().cpu()
        if kept is not None:
            kept.put(signal, values)
        return values

    def _turn_to(self, step: int) -> None:
        if step != self._step:
            self._step, self._measured, self._surveyed = step, {}, {}
