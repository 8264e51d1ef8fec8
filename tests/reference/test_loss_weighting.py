"""Loss weighting (arXiv 2502.06733): goldens for losses 1, 2, 3, 5, and the properties of its functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.weighting.loss_weighting import NORMS, STRATEGIES, LossWeighting
from tests.reference.observations import weighing

GOLDENS = [
    ("linupper", 1.0, (0.123681, 0.203916, 0.336201, 0.336201)),
    ("linupper", 0.4, (0.034656, 0.120960, 0.422192, 0.422192)),
    ("linupper", 100.0, (0.248440, 0.249686, 0.250937, 0.250937)),
    ("quadratic", 1.0, (0.146300, 0.309717, 0.397684, 0.146300)),
    ("quadratic", 0.4, (0.048301, 0.314965, 0.588432, 0.048301)),
    ("extremes", 1.0, (0.336201, 0.203916, 0.123681, 0.336201)),
    ("extremes", 0.4, (0.422192, 0.120960, 0.034656, 0.422192)),
    ("kl_dro", 1.0, (0.078394, 0.129250, 0.213097, 0.579259)),
    ("kl_dro", 0.4, (0.006057, 0.021143, 0.073795, 0.899005)),
]
LOSSES = st.lists(st.floats(0.1, 20), min_size=1, max_size=20)


def weights_of(
    losses: list[float] | Tensor,
    *,
    tokens: list[int] | None = None,
    step: int = 0,
    total_steps: int = 100,
    **fields: object,
) -> Tensor:
    """Checked weights; a constant temperature unless a schedule is given."""
    values = torch.as_tensor(losses, dtype=torch.float64)
    ids = torch.arange(len(values))
    weighter = LossWeighting(**{"r_schedule": "constant", **fields})  # type: ignore[arg-type]
    batch = weighing(torch.zeros_like(ids), tokens=tokens, step=step, total_steps=total_steps)
    return weighter.checked(weighter.weigh(None, values, batch), values)


@pytest.mark.parametrize(("strategy", "r", "expected"), GOLDENS)
def test_goldens(strategy, r, expected):
    weights = weights_of([1, 2, 3, 5], strategy=strategy, r_final=r)
    assert (weights / 4).tolist() == pytest.approx(expected, abs=1e-6)


def test_uniform_is_ones():
    assert weights_of([1, 2, 3, 5], strategy="uniform").tolist() == [1, 1, 1, 1]


@given(LOSSES, st.sampled_from(STRATEGIES), st.sampled_from(NORMS), st.sampled_from([0.05, 1.0, 100.0]), st.randoms())
def test_mean_one_permutation_equivariant_and_detached(losses, strategy, norm, r, random):
    fields = {"strategy": strategy, "norm": norm, "r_final": r}
    weights = weights_of(losses, **fields)
    assert float(weights.mean()) == pytest.approx(1)
    assert bool((weights >= 0).all())
    order = list(range(len(losses)))
    random.shuffle(order)
    assert weights_of([losses[i] for i in order], **fields).tolist() == pytest.approx(weights[order].tolist(), rel=1e-6)


def test_no_gradient_goes_through_the_weights():
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    ids = torch.arange(3)
    batch = weighing([0, 0, 0], tokens=ids + 1)
    weights = LossWeighting().weigh(None, losses, batch)
    assert not weights.requires_grad
    assert weights.dtype == losses.dtype


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.25, 2.0), (7.0, 1.0)])
def test_scale_and_shift_of_the_losses_do_not_matter(strategy, norm, scale, shift):
    losses = [1.0, 2.0, 2.5, 3.0, 5.0]
    moved = weights_of([scale * loss + shift for loss in losses], strategy=strategy, norm=norm)
    assert moved.tolist() == pytest.approx(weights_of(losses, strategy=strategy, norm=norm).tolist(), abs=1e-9)


@given(LOSSES, st.sampled_from([0.1, 0.4, 1.0, 5.0]), st.sampled_from([0.5, 1.0, 2.0]))
def test_linupper_bounds_the_ratio_of_weights(losses, r, delta):
    weights = weights_of(losses, r_final=r, delta=delta)
    assert float(weights.max() / weights.min()) <= math.exp(delta / r) * (1 + 1e-9)


def test_the_ratio_is_e_at_its_most():
    assert float(weights_of([1, 2, 3, 5])[3] / weights_of([1, 2, 3, 5])[0]) == pytest.approx(math.e)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_limits_of_the_temperature(strategy):
    assert weights_of([1, 2, 3, 5], strategy=strategy, r_final=1e9).tolist() == pytest.approx([1] * 4)
    assert bool(weights_of([1, 2, 3, 5], strategy=strategy, r_final=1e-300).isfinite().all())
    assert weights_of([1, 2, 3, 5], strategy="kl_dro", r_final=1e-6).tolist() == pytest.approx([0, 0, 0, 4])


def test_examples_without_tokens_are_left_out():
    full = weights_of([1, 2, 3, 5])
    padded = weights_of([0, 1, 2, 0, 3, 5], tokens=[0, 9, 9, 0, 9, 9])
    assert padded[[1, 2, 4, 5]].tolist() == pytest.approx(full.tolist())
    assert padded[[0, 3]].tolist() == [0, 0]
    assert weights_of([float("nan"), 2, 2], tokens=[0, 1, 1]).tolist() == [0, 1, 1]
    assert weights_of([0, 0], tokens=[0, 0]).tolist() == [0, 0]


def test_one_example_and_none():
    assert weights_of([3.0]).tolist() == [1]
    assert weights_of([]).tolist() == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("norm", NORMS)
def test_equal_losses_weigh_the_same(strategy, norm):
    for guard in (1e-3, 0.0):
        assert weights_of([2.0] * 5, strategy=strategy, norm=norm, guard=guard).tolist() == pytest.approx([1] * 5)


def test_nearly_equal_losses_are_not_weighted_by_noise():
    close = [3.0, 3.00001, 3.00002]
    assert weights_of(close).tolist() == [1, 1, 1]
    assert weights_of(close, guard=0.0)[2] > 1.2


def test_one_bad_example_upsets_minmax_only():
    losses = [1.0, 2.0, 3.0, 5.0] * 10
    minmax = weights_of([*losses, 1000.0], strategy="linupper")
    assert float(minmax[3] / minmax[0]) == pytest.approx(1, abs=0.01)
    quantile = weights_of([*losses, 1000.0], strategy="linupper", norm="quantile")
    assert float(quantile[3] / quantile[0]) == pytest.approx(math.e)


def test_norms_by_hand():
    losses = [float(i) for i in range(21)]  # the .05 and .95 quantiles are 1 and 19
    raised = weights_of(losses, norm="quantile", strategy="kl_dro").log()
    expected = [(2 * min(max(loss, 1), 19) - 20) / 18 for loss in losses]
    assert (raised - raised[10]).tolist() == pytest.approx(expected)
    spread = 2 * torch.tensor(losses, dtype=torch.float64).std(correction=0).item()
    raised = weights_of(losses, norm="zscore", strategy="kl_dro").log()
    assert (raised - raised[10]).tolist() == pytest.approx([(loss - 10) / spread for loss in losses])


@pytest.mark.parametrize(
    ("schedule", "warm_steps", "at"),
    [
        ("constant", 10, {0: 2, 5: 2, 10: 2}),
        ("step", 10, {0: 100, 9: 100, 10: 2, 50: 2}),
        ("step", 0.1, {0: 100, 9: 100, 10: 2, 50: 2}),
        ("linear", 10, {0: 100, 5: 51, 10: 2, 50: 2}),
        ("cosine", 10, {0: 100, 5: 51, 10: 2, 50: 2}),
        ("cosine", 0.1, {0: 100, 5: 51, 10: 2, 50: 2}),
        ("linear", 0, {0: 2}),
    ],
)
def test_schedules(schedule, warm_steps, at):
    weighter = LossWeighting(r_schedule=schedule, r_warm=100, r_final=2, warm_steps=warm_steps)
    for step, r in at.items():
        assert weighter.temperature(step, 100) == pytest.approx(r)


def test_an_infinite_warm_temperature_is_plain_loss():
    fields = {"r_schedule": "step", "r_warm": math.inf, "warm_steps": 5}
    assert weights_of([1, 2, 3, 5], step=4, **fields).tolist() == [1, 1, 1, 1]
    assert weights_of([1, 2, 3, 5], step=5, **fields)[3] > 1.2
