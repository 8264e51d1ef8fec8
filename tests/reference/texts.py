"""Rows of text in memory, as a meter reads them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regimen.core.signal import Signal
from regimen.core.strategy import Observation
from tests.reference.observations import index_of, seeing


class Texts:
    """Rows of the domains a, b, c, ..., in this order. Only text can be asked for."""

    def __init__(self, *domains: list[str]) -> None:
        self.rows = [text for domain in domains for text in domain]
        self.index = index_of([len(domain) for domain in domains], 200)

    def texts(self, ids: Tensor) -> list[str]:
        return [self.rows[i] for i in ids.tolist()]

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self.rows))

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def tokens(self, ids: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def seen(self, signal: Signal, *, ids: Tensor | None = None, seed: int = 0) -> Observation:
        """What a selector sees of rows `ids` (all if not given): they are measured first."""
        rows = self.ids if ids is None else ids
        return seeing(signal.measure(self, rows).double(), ids=rows, index=self.index, by=signal, seed=seed)


def real(shared: Path, domain: str, *, part: str = "train", count: int, shortest: int = 400) -> list[str]:
    """The first documents of a domain of the shared corpora that are not short, cut to 2,000 characters."""
    file = shared / "corpora" / "pretrain" / f"{domain}.{part}.jsonl.gz"
    if not file.is_file():
        pytest.skip("the corpora are not in ../shared")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [text[:2000] for text in texts if len(text) >= shortest][:count]
