"""Small corpora of examples, and what the rows made of them say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.data.tokenizer import load


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def example(number: int, task: str = "sums") -> dict[str, Any]:
    return {
        "id": f"{task}-{number}",
        "instruction": f"Add one ({task})",
        "input": str(number) if number % 2 else "",
        "output": f"{number + 1}",
        "task": task,
    }


def make(path: Path, home: Path, **changes: Any) -> Pool:
    settings: dict[str, Any] = {
        "source": "jsonl",
        "format": "sft",
        "path": str(path),
        "tokenizer": {"kind": "bytes"},
        "seq_len": 256,
        "validation": {"fraction": 0.1},
        "overlap": {"n": 0},
    }
    found = prepare(settings | changes, root=home)
    assert found is not None
    return Pool.open(found)


def told(pool: Pool, row: int) -> tuple[str, str]:
    """The whole text of a training row, and the part of it that is learnt."""
    tokenizer, rows = load(pool.tokenizer_path), pool.train.read(torch.tensor([row]))
    assert rows.targets is not None
    return tokenizer.decode(rows.tokens[0]), tokenizer.decode(rows.tokens[0][rows.targets[0]])


def texts(pool: Pool) -> dict[str, tuple[str, str]]:
    """By the id of its example, what `told` says of each training row."""
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    ids = [pool.documents.ids[k] for k in spans.document.tolist()]
    return {name: told(pool, row) for name, row in zip(ids, spans.row.tolist(), strict=True)}


def hashes(pool: Pool, table: Any) -> list[str]:
    spans = table.documents(torch.arange(table.index.rows))
    return [pool.documents.hashes[k] for k in spans.document.tolist()]
