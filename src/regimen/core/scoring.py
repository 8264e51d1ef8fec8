"""How a model learns rows' scores from those of a part of them, so that a large pool need not be measured whole.

Letters: n rows asked for, m of them measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regimen.core.checks import check_counts, check_positive
from regimen.core.errors import ConfigError
from regimen.core.measuring import GRADIENT
from regimen.core.seeding import generator

NONE, OWN = "none", "own"
WHOLE = 50_000  # rows up to which a pool is better measured whole


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A scorer, or none.

    model: `none` measures every row; `own` learns by a copy of the model that measures; anything else is a new one of
        conf/model by its name, e.g. `nano`.
    rows: m, drawn uniformly from those asked for. Where there are no more than that, all are measured and nothing is
        learnt. held_out: part of them that is not learnt from, for the Spearman correlation that picks the epoch.
    epochs, batch_rows: of training. lr: its highest; it rises for `warmup` steps and falls on a cosine to final_lr.
    weight_decay: of AdamW. clip_norm: of gradients. clip_scores: standardised scores are cut to this from 0.
    seed: of all draws.
    """

    whole_parameters: ClassVar[bool] = True  # on every rank
    model: str = NONE
    rows: int = 163_840
    held_out: float = 0.1
    epochs: int = 5
    batch_rows: int = 512
    lr: float = 1e-4
    final_lr: float = 1e-7
    warmup: int = 10
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    clip_scores: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            allowed = "none, own, or a model of conf/model by its name"
            raise ConfigError("model of a scorer is unknown", got=f"model={self.model}", allowed=allowed)
        check_counts(self, "rows", "epochs", "batch_rows")
        check_positive(self, "lr", "final_lr", "clip_norm", "clip_scores")
        if not 0 < self.held_out < 1 or self.warmup < 0 or self.weight_decay < 0:
            got = f"held_out={self.held_out}, warmup={self.warmup}, weight_decay={self.weight_decay}"
            raise ConfigError("out of range", got=got, allowed="held_out between 0 and 1, the others 0 or more")
        held, learnt = self.parts(self.rows)
        if self.model != NONE and (held < 2 or learnt < 1):
            raise ConfigError(
                "too few rows to learn scores from and to compare with",
                got=f"rows={self.rows}, held_out={self.held_out}: {learnt} and {held}",
                allowed="1 or more to learn from, 2 or more held out",
                do="raise rows of the scorer",
            )

    @property
    def named(self) -> str | None:
        """The model of conf/model that is made for it, None for none."""
        return None if self.model in (NONE, OWN) else self.model

    def parts(self, rows: int) -> tuple[int, int]:
        """Of so many measured rows, how many are held out, and how many learnt from."""
        held = round(self.held_out * rows)
        return held, rows - held

    def learns(self, rows: int) -> bool:
        """Whether a scorer is trained where so many rows are asked for."""
        return self.model != NONE and rows > self.rows

    def sample(self, ids: Tensor) -> Tensor:
        """Places (m,) int64, ascending, of the rows among ids (n,) that are measured."""
        return torch.randperm(len(ids), generator=generator("scorer", self.seed))[: self.rows].sort().values

    def split(self, rows: int) -> tuple[Tensor, Tensor]:
        """Places of so many measured rows that are held out, and of those learnt from."""
        order = torch.randperm(rows, generator=generator("scorer", self.seed, "held out"))
        held, _ = self.parts(rows)
        return order[:held], order[held:]

    def order(self, rows: int, epoch: int) -> Tensor:
        """The sequence (rows,) in which an epoch, from 0, goes through the rows learnt from."""
        return torch.randperm(rows, generator=generator("scorer", self.seed, "epoch", epoch))

    def passes(self, rows: int, of_score: float) -> float:
        """Forward passes that scoring so many rows costs where measuring one costs `of_score`; a backward is two."""
        if not self.learns(rows):
            return rows * of_score
        held, learnt = self.parts(self.rows)
        return self.rows * of_score + self.epochs * (GRADIENT * learnt + held) + rows

    def advice(self, rows: int, *, of: str) -> str | None:
        """What to do otherwise with so many rows, None where nothing. of: what is measured."""
        if self.model == NONE and rows > WHOLE:
            return (
                f"{of} is measured of all {rows:,} rows; above about {WHOLE:,} it is cheaper to measure a part and to "
                "learn the rest: set scorer.model=own, or scorer.model=NAME of a smaller model, and scorer.rows"
            )
        if self.model != NONE and not self.learns(rows):
            return (
                f"all {rows:,} rows are measured and no scorer is trained, since scorer.rows={self.rows:,} is no less: "
                "lower scorer.rows, or set scorer.model=none"
            )
        return None
