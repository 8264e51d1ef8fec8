"""`regimen store`: what finished stages left, why it is kept, how large it is; and its removal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from regimen.core.errors import ConfigError
from regimen.runs.store import Entry, Store

_SETS = ("all", "unused", "unfinished")


def main(settings: Mapping[str, str]) -> int:
    """List the store, or remove entries of it. Returns the exit status."""
    home = os.environ.get("REGIMEN_HOME") or Path("~/.cache/regimen")
    store = Store(Path(settings.get("at") or Path(home) / "store"))
    if "remove" in settings:
        for entry in chosen(store.entries(), settings["remove"]):
            store.remove(entry)
            print(f"removed {entry.kind} {entry.name}-{entry.key}", file=sys.stderr)
    _show(store)
    return 0


def chosen(entries: list[Entry], wanted: str) -> list[Entry]:
    """Entries by key, comma separated, or by set: `all`, `unused` (no run asked for them), `unfinished`.

    Raises ConfigError for a key that the store lacks.
    """
    if wanted == "all":
        return entries
    if wanted == "unused":
        return [entry for entry in entries if not entry.asked_by or entry.state == "gone"]
    if wanted == "unfinished":
        return [entry for entry in entries if entry.state != "finished"]
    keys = wanted.split(",")
    known = {entry.key: entry for entry in entries}
    missing = [key for key in keys if key not in known]
    if missing:
        raise ConfigError(
            "the store holds no such entry",
            got=", ".join(missing),
            allowed=f"a key of the list, or {', '.join(_SETS)}",
            do="regimen store",
        )
    return [known[key] for key in keys]


def _show(store: Store) -> None:
    entries = store.entries()
    table = Table(title=f"{store.root}", title_justify="left", box=None, pad_edge=False)
    for column in ("key", "kind", "name", "state", "MB", "asked for by", "where"):
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for entry in entries:
        asked = ", ".join(entry.asked_by[:3]) + (f" and {len(entry.asked_by) - 3} more" if entry.asked_by[3:] else "")
        where = "store" if entry.own else str(entry.folder)
        size = f"{entry.size / 1e6:.1f}"
        table.add_row(entry.key, entry.kind, entry.name, entry.state, size, asked or "no run", where)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    kept = sum(entry.size for entry in entries if entry.own)
    print(f"{len(entries)} entries, {kept / 1e6:.1f} MB of its own")
