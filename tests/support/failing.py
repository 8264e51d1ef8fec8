"""Weighters that fail on some ranks while a file says so, or leave on disk which GPUs their process sees."""

from __future__ import annotations

import builtins
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regimen.core import errors
from regimen.core.strategy import WeighedBatch, Weighter


@dataclass(frozen=True, kw_only=True)
class Failing(Weighter):
    """Fails where `at` has a file rankN, with the exception that the file names. number: which job of a grid."""

    at: str
    number: int = 0

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        asked = Path(self.at) / f"job{self.number}.rank{os.environ.get('RANK', os.environ.get('LOCAL_RANK', '0'))}"
        if asked.is_file():
            kind = getattr(errors, asked.read_text(), None) or getattr(builtins, asked.read_text())
            raise kind("this weighter was asked to fail")
        return torch.ones_like(losses)


@dataclass(frozen=True, kw_only=True)
class Seeing(Weighter):
    """Writes CUDA_VISIBLE_DEVICES and the process's id to a file `number` in `to`; waits for `others` of them."""

    to: str
    number: int = 0
    others: int = 1

    def weigh(self, state: Any, losses: Tensor, batch: WeighedBatch) -> Tensor:
        folder = Path(self.to)
        (folder / str(self.number)).write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.getpid()}")
        deadline = time.monotonic() + 120
        while len(list(folder.iterdir())) < self.others and time.monotonic() < deadline:
            time.sleep(0.1)
        return torch.ones_like(losses)
