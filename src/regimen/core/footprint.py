"""What a rank keeps in memory of the rows of a pool, in bytes: read off the tensors that index, stream and plan hold.

A test holds these numbers against the tensors themselves; `benchmarks/scale.py` measures the process around them.
Letters: N rows of the pool, M rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from regimen.core.lanes import id_type


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes per rank.

    rows: N. kept: part of the rows that a selector keeps, None without one. ordered: whether there is an orderer.
    ragged: whether rows differ in length; examples: whether prompts are read beside targets.
    """

    rows: int
    kept: float | None = None
    ordered: bool = False
    ragged: bool = False
    examples: bool = False

    @property
    def index(self) -> int:
        """Target tokens of each row, and what a model reads of it: none where all rows are as long."""
        return 4 * self.rows * (self.examples + (self.ragged or self.examples))

    @property
    def stream(self) -> int:
        """How often each row was served, and the rows of the present pass in their order."""
        return self.rows + round(self._id * self.rows * (1.0 if self.kept is None else self.kept))

    @property
    def plan(self) -> int:
        """The ids that a selector keeps; the order, and each row's place in it."""
        keep = 0.0 if self.kept is None else 8 * self.rows * self.kept
        served = self.rows * (1.0 if self.kept is None else self.kept)
        return round(keep + self.ordered * (8 * served + self._id * self.rows))

    @property
    def total(self) -> int:
        """All of it."""
        return self.index + self.stream + self.plan

    @property
    def _id(self) -> int:
        return id_type(self.rows).itemsize
