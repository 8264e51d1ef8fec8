"""Large tensors of a saved plan live in files named by their digest: a checkpoint holds the names."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from regimen.core.errors import RunError
from regimen.core.plan import digest_of

_LARGE = 1024  # elements from which a tensor gets a file of its own
_digests: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> (version, digest)


def externalise(state: Any, folder: Path, *, write: bool = True) -> Any:
    """The same nested state with large tensors replaced by the names of files under `folder`, written once.

    write: only one rank writes; the others name the same files.
    """
    if isinstance(state, dict):
        return {key: externalise(value, folder, write=write) for key, value in state.items()}
    if not isinstance(state, Tensor) or state.numel() < _LARGE:
        return state
    digest = _digest(state)
    path = folder / f"{digest}.pt"
    if write and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)
    return {"stored": path.name}


def _digest(tensor: Tensor) -> str:
    """Of a tensor that one checkpoint after the other saves: counted anew only after a change in place."""
    known = _digests.get(tensor)
    if known is None or known[0] != tensor._version:
        known = _digests[tensor] = (tensor._version, digest_of(tensor))
    return known[1]


def internalise(state: Any, folder: Path) -> Any:
    """The inverse of `externalise`. Raises RunError where a file is gone or is not what its name says."""
    if not isinstance(state, dict):
        return state
    if set(state) != {"stored"}:
        return {key: internalise(value, folder) for key, value in state.items()}
    path = folder / state["stored"]
    tensor = None
    with contextlib.suppress(FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError):
        tensor = torch.load(path, weights_only=True)
    if tensor is None or digest_of(tensor) != path.stem:
        raise RunError(
            "a part of the plan that the checkpoint needs is missing or damaged",
            got=path,
            do="restore the file, or start the run in a new folder",
        )
    return tensor
