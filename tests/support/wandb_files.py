"""Reads the file of an offline W&B run with no server: LevelDB-style blocks of protobuf records."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER, _BLOCK = 7, 32768


@dataclass
class WandbRun:
    """What a W&B run holds. history: one dictionary per logged row; nested keys are joined by `/`."""

    id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def series(self, key: str) -> list[tuple[int, Any]]:
        """(step, value) of every row that has `key`."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


def read(path: Path) -> WandbRun:
    """The run of one `.wandb` file."""
    run = WandbRun()
    for data in _chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            given = record.run
            run.id, run.group, run.job_type = given.run_id, given.run_group, given.job_type
            run.name = given.display_name
            run.tags = list(given.tags)
            run.config |= _items(given.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(updates: Any) -> dict[str, Any]:
    return {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}


def _chunks(raw: bytes) -> Iterator[bytes]:
    """Whole records; a record longer than a block is cut into first, middle and last parts."""
    assert raw[:4] == b":W&B", "not a W&B run file"
    place, parts = _HEADER, b""
    while place + 7 <= len(raw):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        crc, size, kind = struct.unpack("<IHB", raw[place : place + 7])
        data = raw[place + 7 : place + 7 + size]
        assert kind in (1, 2, 3, 4) and len(data) == size, f"torn at {place}"
        assert zlib.crc32(bytes([kind]) + data) & 0xFFFFFFFF == crc, f"bad checksum at {place}"
        place += 7 + size
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield parts
