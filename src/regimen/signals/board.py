"""The signal board: measures each distinct signal once per decision step, and only the rows not measured yet."""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.signal import Meter, Signal


class SignalBoard:
    """Values by signal for one step. Equal signals of two strategies share one measurement.

    meter: measures; collective over ranks, so every rank asks the same.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._step = -1
        self._measured: dict[Signal, tuple[Tensor, Tensor]] = {}

    def values(self, signal: Signal, ids: Tensor, *, step: int) -> Tensor:
        """Values (n,) float64 of `signal` on rows `ids` (n,), under the model as it is after `step` steps."""
        if step != self._step:
            self._step, self._measured = step, {}
        known_ids, known = self._measured.get(signal, (ids[:0], torch.empty(0, dtype=torch.float64)))
        missing = torch.unique(ids[~torch.isin(ids, known_ids)])
        if len(missing):
            known_ids = torch.cat([known_ids, missing])
            known = torch.cat([known, signal.measure(self.meter, missing).double().cpu()])
            order = known_ids.argsort()
            known_ids, known = known_ids[order], known[order]
            self._measured[signal] = (known_ids, known)
        return known[torch.searchsorted(known_ids, ids)]
