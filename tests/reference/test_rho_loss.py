"""RHO-LOSS (arXiv 2206.07137): the highest loss minus irreducible loss, never of held-out rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.selection.holdout import held_out
from regimen.selection.rho_loss import RhoLoss
from regimen.signals.reducible_loss import ReducibleLoss
from tests.reference.observations import index_of, seeing

SELECTOR = RhoLoss(reference="run", fraction=0.25)
SUMS = {None: [8.0, 3.0, 6.0, 0.0, 9.0], "run": [2.0, 3.0, 1.0, 0.0, 8.5]}
TOKENS = torch.tensor([4, 3, 2, 0, 1])


@dataclass(frozen=True)
class TwoModels:
    """A meter with the summed losses of five rows under the model in training and under a finished run."""

    model: str | None = None

    @property
    def index(self) -> PoolIndex:
        return index_of([5])

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(SUMS[self.model], dtype=torch.float64)[ids], TOKENS[ids].double()

    def under(self, model: str) -> TwoModels:
        return TwoModels(model)


def reducible(reference: str) -> list[float]:
    signal = ReducibleLoss(reference=reference)
    return signal.measure(TwoModels(), torch.tensor([4, 0, 1, 2, 3])).tolist()  # type: ignore[arg-type]


def test_the_signal_is_a_difference_of_means():
    assert reducible("run") == pytest.approx([0.5, 6 / 4, 0, 5 / 2, 0])


def test_the_signal_says_which_models_it_runs():
    signal = ReducibleLoss(reference="run")
    assert signal.models() == (None, "run")
    assert signal.passes() == 2


def seeing_values(values: list[float], **fields: object):
    return seeing(values, by=SELECTOR.by, **fields)  # type: ignore[arg-type]


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=40), st.integers(1, 6))
def test_the_best_of_the_rows_that_are_not_held_out(values, size):
    seen = seeing_values(values, horizon=size)
    outside = (~held_out(seen.ids, fraction=0.25, seed=0)).nonzero().flatten().tolist()
    best = sorted(outside, key=lambda i: (-values[i], i))[:size]
    assert SELECTOR.decide(None, seen).tolist() == best


def test_a_model_that_is_its_own_reference_ranks_by_id():
    outside = (~held_out(torch.arange(20), fraction=0.25, seed=0)).nonzero().flatten()
    seen = seeing_values([0.0] * 20, horizon=4)
    assert SELECTOR.decide(None, seen).tolist() == outside[:4].tolist()
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert SELECTOR.decide(None, seeing_values([0.0] * 20, ids=mixed, horizon=4)).tolist() == outside[:4].tolist()


def test_noise_is_never_picked_before_what_can_be_learnt():
    """Rows of noise have the highest losses under both models; learnable ones a gap; learnt ones none."""
    loss = torch.tensor([9.0] * 10 + [4.0] * 10 + [1.0] * 10).double()
    irreducible = torch.tensor([8.9] * 10 + [1.0] * 10 + [1.0] * 10).double()
    seen = seeing_values((loss - irreducible).tolist(), horizon=5)
    assert all(10 <= row < 20 for row in SELECTOR.decide(None, seen).tolist())


def test_rows_without_target_tokens_are_not_kept():
    seen = seeing_values([-1.0] * 20, horizon=20)
    seen = dataclasses.replace(seen, tokens=torch.arange(20) % 2)
    chosen = SELECTOR.decide(None, seen)
    assert bool((chosen % 2 == 1).all())
    assert len(chosen) == int((~held_out(seen.ids, fraction=0.25, seed=0) & (seen.tokens > 0)).sum())


def test_too_few_candidates_are_told():
    usable = int((~held_out(torch.arange(12), fraction=0.25, seed=0)).sum())
    for horizon, words in ((usable - 1, None), (usable, "chose nothing"), (usable + 1, "rows repeat")):
        seen = seeing_values([0.5] * 12, horizon=horizon)
        decision = SELECTOR.checked(SELECTOR.decide(None, seen), seen)
        notes = SELECTOR.notes(None, decision, seen)
        assert bool(notes) == (words is not None)
        assert words is None or (words in notes[0] and f"all {usable} rows" in notes[0])


def test_all_held_out_keeps_nothing_and_says_so():
    selector = RhoLoss(reference="run", fraction=0.999999)
    seen = seeing([1.0, 2.0], by=selector.by)
    with pytest.raises(ConfigError, match="kept no row"):
        selector.checked(selector.decide(None, seen), seen)


@pytest.mark.parametrize("fields", [{"reference": None}, {"fraction": 0.0}, {"fraction": 1.0}, {"candidates": 0}])
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        RhoLoss(**{"reference": "run", **fields})
    with pytest.raises(ConfigError):
        ReducibleLoss(reference=None)
