"""Length curriculum: short rows first, then ever longer ones.

Papers: sequence-length warm-up, arXiv 2108.06084; dataset decomposition with a curriculum over lengths, arXiv
2405.13226.
Differs from the papers: rows are chosen by their length and never cut (2108.06084 cuts every sequence of a step to its
length) nor put together anew (2405.13226); a batch has as many rows as ever, and so fewer tokens while rows are short.
Letters: n rows to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Observation
from regimen.selection.curriculum import Curriculum


@dataclass(frozen=True, kw_only=True)
class LengthCurriculum(Curriculum):
    """A curriculum whose difficulty is a row's length; refused where all rows are of one length."""

    def ranked(self, seen: Observation) -> Tensor:
        """Rows (n,) from short to long, ties by id. Raises ConfigError for rows of one length."""
        lengths = seen.scores(self.by)
        if len(lengths) > 1 and bool((lengths == lengths[0]).all()):
            raise ConfigError(
                "all rows have the same length, so that there is no curriculum by length",
                got=f"{len(lengths)} rows of {lengths[0]:g} tokens",
                do="take rows of one example (objective=sft), or order by another signal with method=curriculum",
            )
        return super().ranked(seen)
