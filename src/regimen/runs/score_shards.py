"""Scores made in parts: what a part of the rows is, what may be scored so, and how the parts become the whole.

Letters: n rows of the pool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.signal import Signal

_SAME = ("unit", "by", "pool", "tokenizer", "model", "seed", "settings", "pool_rows", "version")  # of all parts


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: a run of consecutive ids. `count` 1 is all of them."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ConfigError(
                "no such shard", got=f"shard.index={self.index} shard.count={self.count}", allowed="0 <= index < count"
            )

    def ids(self, rows: int) -> Tensor:
        """The ids of this part of `rows` rows; the parts differ by one row at most."""
        return torch.arange(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def folder(self, whole: Path) -> Path:
        """Where the part is kept, under the folder of the whole."""
        return whole / "shards" / f"{self.index:05d}-of-{self.count:05d}"

    def all_folders(self, whole: Path) -> list[Path]:
        """Where all the parts are kept, in the order of ids."""
        return [Shard(index, self.count).folder(whole) for index in range(self.count)]


def refuse_what_needs_all_rows(shard: Shard, signal: Signal | None) -> None:
    """Raises ConfigError where a part cannot be scored alone: by a selector, or a signal that compares rows."""
    if shard.count == 1 or (signal is not None and signal.by_row):
        return
    what = "a selector decides over all rows" if signal is None else f"{type(signal).__name__} compares rows"
    raise ConfigError(
        f"{what}, so that a part of them cannot be scored alone",
        got=f"shard.count={shard.count}",
        allowed="in shards: a signal whose value of a row depends on that row alone, e.g. 'score.by=${signal.loss}'",
        do="drop shard.count; or score the signal in shards, and select from the file with method=scores",
    )


def read_parts(folders: list[Path], table: str, manifest: str) -> tuple[Tensor, dict[str, Any]] | None:
    """Scores (n,) of all rows and the manifest of the whole, None while a part is missing.

    Raises ConfigError where the parts were not made alike.
    """
    import pyarrow.parquet as pq

    if not all((folder / manifest).is_file() for folder in folders):
        return None
    told = [json.loads((folder / manifest).read_text()) for folder in folders]
    for folder, one in zip(folders, told, strict=True):
        for key in _SAME:
            if one[key] != told[0][key]:
                raise ConfigError(
                    "shards of these scores were made with different settings",
                    got=f"{key} is {told[0][key]} in {folders[0].name}, {one[key]} in {folder.name}",
                    do=f"remove the one that is wrong and score it again, or choose another run_dir: {folder}",
                )
    columns = [pq.read_table(folder / table) for folder in folders]
    ids = torch.cat([torch.from_numpy(c["id"].to_numpy().copy()) for c in columns])
    assert torch.equal(ids, torch.arange(told[0]["pool_rows"]))
    scores = torch.cat([torch.from_numpy(c["score"].to_numpy().copy()) for c in columns])  # (n,)
    measuring = {key: sum(one["measuring"][key] for one in told) for key in told[0]["measuring"]}
    # Stages are shared through the store, so that every part is charged the same ones.
    return scores, {**{key: told[0][key] for key in _SAME}, "measuring": measuring, "stages": told[0]["stages"]}


def leave_nothing(part: Path, whole: Path) -> None:
    """Take back the empty folders of a part that was refused."""
    for folder in (part.parent, whole):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def shard_of(settings: Mapping[str, Any]) -> Shard:
    """The part that `shard.index` and `shard.count` ask for."""
    return Shard(settings["shard"]["index"], settings["shard"]["count"])
