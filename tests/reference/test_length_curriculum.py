"""Length curriculum: from short to long (see test_curriculum for the pacing), and what needs lengths."""

from __future__ import annotations

import math

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.selection.length_curriculum import LengthCurriculum
from regimen.selection.pacing import Pacing
from regimen.signals.loss import Length
from tests.reference.observations import index_of, seeing

BY = Length()
LENGTHS = [9, 3, 5, 3, 12, 7, 1, 8]
ORDER = [6, 1, 3, 2, 5, 7, 0, 4]


class Rows:
    """A meter that knows lengths alone."""

    index = index_of([1] * len(LENGTHS), LENGTHS)


def test_short_rows_first_by_the_signal_itself() -> None:
    orderer = LengthCurriculum(by=BY, pacing=Pacing(kind="linear", start=0.25, until=0.8))
    lengths = BY.measure(Rows(), torch.arange(len(LENGTHS)))
    for step in (0, 10, 40, 79, 80, 100):
        share = min(0.25 + 0.75 * step / 80, 1.0)
        seen = seeing(lengths, step=step, index=Rows.index, by=BY)
        decision = orderer.decide(orderer.init(seen.index), seen)
        assert decision.ids.tolist() == ORDER[: math.ceil(share * 8 - 1e-9)]


def test_rows_of_one_length_are_refused() -> None:
    orderer = LengthCurriculum(by=BY)
    equal = seeing([8.0, 8.0], by=BY)
    with pytest.raises(ConfigError, match="(?s)same length.*2 rows of 8 tokens.*method=curriculum"):
        orderer.decide(orderer.init(equal.index), equal)
    one = seeing([8.0], by=BY)
    assert orderer.decide(orderer.init(one.index), one).ids.tolist() == [0]
