"""The signal board: measures each distinct signal once per decision step, and only the rows not measured yet."""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.seeding import generator
from regimen.core.signal import DomainSignal, Meter, Signal, Surveyor


class SignalBoard:
    """Values by signal for one step. Equal signals of two strategies share one measurement.

    meter, surveyor: measure rows and domains; collective over ranks, so every rank asks the same. seed: of the run.
    """

    def __init__(self, meter: Meter, surveyor: Surveyor, *, seed: int) -> None:
        self.meter, self.surveyor, self.seed = meter, surveyor, seed
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
                draw = generator(self.seed, repr(signal), step)
                self._surveyed[signal] = signal.survey(self.surveyor, ids, draw).double().cpu()
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

    def _turn_to(self, step: int) -> None:
        if step != self._step:
            self._step, self._measured, self._surveyed = step, {}, {}
