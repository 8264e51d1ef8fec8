"""Shuffled weights: the values of another weighter's weights, and nothing of their order."""

from __future__ import annotations

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.weighting.focal import Focal
from regimen.weighting.loss_weighting import LossWeighting
from regimen.weighting.shuffled_weights import ShuffledWeights
from tests.reference.observations import weighing

LOSSES = torch.tensor([1.0, 2.0, 3.0, 5.0, 0.0, 4.0])
TOKENS = [9, 9, 9, 9, 0, 9]


def test_the_same_weights_elsewhere() -> None:
    inner = LossWeighting(r_schedule="constant")
    given = inner.weigh(None, LOSSES, weighing([0] * 6, tokens=TOKENS))
    seen = set()
    for seed in range(40):
        batch = weighing([0] * 6, tokens=TOKENS, seed=seed)
        dealt = ShuffledWeights(of=inner).weigh(None, LOSSES, batch)
        assert dealt.sort().values.tolist() == given.sort().values.tolist()
        assert dealt[4] == 0, "a row without targets has nothing to deal or to get"
        seen.add(tuple(dealt.tolist()))
    assert len(seen) > 10  # of 5! / 3!: three weights are equal


def test_independent_of_the_rows_on_average() -> None:
    inner = LossWeighting(r_schedule="constant")
    batches = [weighing([0] * 6, tokens=TOKENS, seed=seed) for seed in range(2000)]
    mean = torch.stack([ShuffledWeights(of=inner).weigh(None, LOSSES, batch) for batch in batches]).mean(0)
    expected = inner.weigh(None, LOSSES, batches[0]).sum() / 5
    assert mean[[0, 1, 2, 3, 5]].tolist() == pytest.approx([float(expected)] * 5, rel=0.05)


def test_tokens_are_shuffled_among_those_that_are_predicted() -> None:
    losses = torch.rand(3, 4)
    targets = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 1]]).bool()
    batch = weighing([0, 0, 0], tokens=[3, 1, 3], targets=targets)
    wrapped = ShuffledWeights(of=Focal())
    assert (wrapped.unit, wrapped.scope) == ("token", "batch")
    inner = Focal().weigh(None, losses, batch)
    dealt = wrapped.weigh(None, losses, batch)
    assert dealt[targets].sort().values.tolist() == inner[targets].sort().values.tolist()
    assert dealt[~targets].tolist() == [0] * 5


def test_refused() -> None:
    with pytest.raises(ConfigError, match="wraps a weighter"):
        ShuffledWeights(of=None)  # type: ignore[arg-type]
