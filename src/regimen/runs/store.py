"""The store: what finished stages left, by a key made of everything that determines it. Files alone, no process.

root/runs/NAME-KEY   folders of runs that were trained as stages
root/fits/NAME-KEY   fits
root/measurements/NAME-KEY  values measured on a pool's text
root/index/KEY.json  where an entry lies (a run started by hand lies among the outputs), and who asked for it
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from regimen import __version__
from regimen.core.errors import ConfigError, RunError
from regimen.core.files import write_json
from regimen.data.locking import locked
from regimen.runs.identity import config_hash

if TYPE_CHECKING:  # listing the store needs no torch
    from regimen.data.pool import Pool


_SETTING = "paths.store=DIR"
VALUES = "values.json"  # of a measurement


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something kept. kind: `run`, `fit`, `measurement`. asked_by: runs that needed it. own: made by the store."""

    key: str
    kind: str
    name: str
    folder: Path
    asked_by: tuple[str, ...]
    own: bool

    @property
    def state(self) -> str:
        """`finished`, `unfinished` (a run that stopped, to be gone on with) or `gone`."""
        if not self.folder.is_dir():
            return "gone"
        return "finished" if is_finished(self.folder) else "unfinished"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def run_key(settings: Mapping[str, Any], pool: Pool) -> str:
    """Ten hex digits of what determines a run: settings that count, data, tokenizer, version."""
    return digest(config_hash(settings), pool.fingerprint, pool.tokenizer_fingerprint, __version__)


def fit_key(spec: Mapping[str, Any], runs: list[str]) -> str:
    """Ten hex digits of what determines a fit: its settings and the keys of its runs."""
    return digest(json.dumps(spec, sort_keys=True, default=str), *runs, __version__)


def digest(*parts: str) -> str:
    """Ten hex digits of texts."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:10]


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run, fit or measurement."""
    path = folder / "summary.json"
    if path.is_file():
        return bool(json.loads(path.read_text())["status"] == "finished")
    return (folder / "fit.json").is_file() or (folder / VALUES).is_file()


class Store:
    """The entries under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def place(self, kind: str, name: str, key: str) -> Path:
        """Where an entry of this key is, or is to be made."""
        entry = self._read(key)
        if entry is not None and is_finished(Path(entry["folder"])):
            return Path(entry["folder"])
        return self.root / f"{kind}s" / f"{name}-{key}"

    def note(self, kind: str, name: str, key: str, folder: Path, *, asked_by: str | None) -> None:
        """Write down where an entry lies and who asked for it."""
        path = self.root / "index" / f"{key}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock", setting=_SETTING):
                known = self._read(key) or {"asked_by": []}
                asked = known["asked_by"]
                if known.get("folder") and is_finished(Path(known["folder"])):
                    folder = Path(known["folder"])  # the same run, made before: its folder must not be lost sight of
                if asked_by is not None and asked_by not in asked:
                    asked = [*asked, asked_by]
                entry = {"kind": kind, "name": name, "folder": str(folder.resolve()), "asked_by": asked}
                if entry != known:
                    write_json(path, entry)
        except OSError as error:
            raise self._unwritable(error) from error

    def ready(self) -> None:
        """Refuse a store that cannot be written or has no locks, before hours are spent on what it is to remember."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock", setting=_SETTING):
                pass
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            "the store cannot be written",
            got=f"{self.root}: {error.strerror or error}",
            do="choose another folder: paths.store=DIR",
        )

    def entries(self) -> list[Entry]:
        """Everything that a run asked for or that lies in the store, by kind and name."""
        found = []
        for path in sorted((self.root / "index").glob("*.json")):
            told = json.loads(path.read_text())
            folder = Path(told["folder"])
            own = self.root in folder.parents
            if own or told["asked_by"]:
                asked = tuple(told["asked_by"])
                kind, name = told["kind"], told["name"]
                found.append(Entry(key=path.stem, kind=kind, name=name, folder=folder, asked_by=asked, own=own))
        return sorted(found, key=lambda e: (e.kind, e.name, e.key))

    def remove(self, entry: Entry) -> None:
        """Forget an entry, and delete its folder where the store made it. Raises ConfigError while a run is at it."""
        if entry.own and entry.folder.is_dir():
            try:
                with locked(entry.folder / ".lock", patient=False, setting=_SETTING):
                    pass
            except filelock.Timeout:
                raise ConfigError("a process is busy with this entry", got=entry.folder, do="wait for it") from None
            shutil.rmtree(entry.folder)
        (self.root / "index" / f"{entry.key}.json").unlink(missing_ok=True)

    def _read(self, key: str) -> dict[str, Any] | None:
        path = self.root / "index" / f"{key}.json"
        return json.loads(path.read_text()) if path.is_file() else None
