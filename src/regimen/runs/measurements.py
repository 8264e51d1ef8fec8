"""What was measured on a pool's text, in the store: entropies, which no model and no draw can change.

Letters: K domains.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from regimen import __version__
from regimen.core.files import write_json
from regimen.core.signal import DomainSignal
from regimen.data.pool import Pool
from regimen.runs.identity import signal_identity
from regimen.runs.store import VALUES, Store, digest


class Measurements:
    """Values of signals of text, by signal and pool.

    asked_by: the run. write: whether this rank writes; all read.
    """

    def __init__(self, store: Store, pool: Pool, *, asked_by: str, write: bool) -> None:
        self.store, self.pool, self.asked_by, self.write = store, pool, asked_by, write

    def get(self, signal: DomainSignal) -> Tensor | None:
        """The values (K, ...) float64 of a signal, or None where they were never measured."""
        name, key = self._key(signal)
        path = self.store.place("measurement", name, key) / VALUES
        if not path.is_file():
            return None
        if self.write:
            self.store.note("measurement", name, key, path.parent, asked_by=self.asked_by)
        return torch.tensor(json.loads(path.read_text())["values"], dtype=torch.float64)

    def put(self, signal: DomainSignal, values: Tensor) -> None:
        """Keep values (K, ...)."""
        if not self.write:
            return
        name, key = self._key(signal)
        folder = self.store.place("measurement", name, key)
        told = {"signal": repr(signal), "pool": self.pool.fingerprint, "domains": list(self.pool.domains)}
        write_json(folder / VALUES, {**told, "values": values.tolist()})
        self.store.note("measurement", name, key, folder, asked_by=self.asked_by)

    def _key(self, signal: DomainSignal) -> tuple[str, str]:
        name = type(signal).__name__.lower()
        fields = json.dumps(signal_identity(signal), sort_keys=True, default=str)
        return name, digest(name, fields, self.pool.fingerprint, __version__)
