"""Preference pairs from a file: a prompt, the answer that was chosen, and the one that was rejected.

The file is JSON lines and is read when a signal is measured, never by a strategy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from regimen.core.errors import ConfigError

SUBTASK = "pairs"  # of pairs that name none


class Pair(NamedTuple):
    """A preference, of the subtask `subtask`."""

    prompt: str
    chosen: str
    rejected: str
    subtask: str = SUBTASK


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of a file, in its order. Raises ConfigError for a line that is no pair, or a file without any."""
    pairs = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                pairs.append(_pair(file, number, line))
    if not pairs:
        raise ConfigError("the file has no preference pairs", got=file)
    return pairs


def _pair(file: Path, number: int, line: str) -> Pair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {number} of the preference pairs is not JSON", got=f"{file}: {error}") from error
    fields = ("prompt", "chosen", "rejected")
    if not isinstance(record, Mapping) or any(not isinstance(record.get(name), str) for name in fields):
        raise ConfigError(
            f"line {number} of the preference pairs is no pair",
            got=f"{file}: {line.strip()[:80]}",
            allowed="an object with the texts prompt, chosen and rejected, and subtask if there are several",
        )
    prompt, chosen, rejected = (str(record[name]) for name in fields)
    return Pair(prompt, chosen, rejected, str(record.get("subtask", SUBTASK)))
