"""DWM (arXiv 2507.16178): weights, stages and lessons of the strategy, and the network behind it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.lookahead import Lookahead, Looked
from regimen.core.observation import WeighedBatch
from regimen.weighting.descent import adam, clipped, no_moments
from regimen.weighting.dwm import INPUTS, Dwm, DwmState
from regimen.weighting.row_features import features, novelty
from regimen.weighting.weighting_model import Shape, new_parameters, scores_of
from tests.reference.observations import weighing

SMALL = {"width": 16, "heads": 2, "length": 6, "buckets": 11, "reduction": "sample_mean", "meta_lr": 1e-2}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(strategy: Dwm, count: int = 7, *, tokens: list[int] | None = None) -> WeighedBatch:
    """Rows of two domains with distinct tokens, or hidden states, ragged."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(0, 50, (count, 6), generator=draw)
    rows[1, 4:] = -1
    values = drawn(4, count, 5) if strategy.input == "pooled_hidden" else rows
    return weighing([k % 2 for k in range(count)], tokens=tokens, values={strategy.needs()[0]: values})


def permuted(batch: WeighedBatch, order: Tensor) -> WeighedBatch:
    values = {signal: value[order] for signal, value in batch.values.items()}
    return dataclasses.replace(batch, domain=batch.domain[order], tokens=batch.tokens[order], values=values)


def taught(strategy: Dwm, batch: WeighedBatch, products: Tensor, losses: Tensor, times: int = 1) -> DwmState:
    state = strategy.init(batch.index)
    for _ in range(times):
        state = strategy.learn(state, batch, Looked(losses.double(), products.double(), 1.0))
    return state


@pytest.mark.parametrize("what", INPUTS)
def test_t6_weights_are_uniform_at_first_and_have_mean_one_after(what: str) -> None:
    strategy = Dwm(input=what, **SMALL)
    batch, losses = batch_of(strategy), drawn(0, 7).abs()
    assert strategy.weigh(strategy.init(batch.index), losses, batch).tolist() == [1.0] * 7
    still = taught(dataclasses.replace(strategy, meta_lr=0.0), batch, drawn(1, 7), losses)
    assert strategy.weigh(still, losses, batch).tolist() == [1.0] * 7, "exactly: the last layer starts at zero"
    state = taught(strategy, batch, drawn(1, 7), losses, 20)
    weights = strategy.weigh(state, losses, batch)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6) and float(weights.std()) > 0.05
    assert float(strategy.shares(state, losses, batch).sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("what", INPUTS)
def test_the_order_of_rows_does_not_matter(what: str) -> None:
    strategy = Dwm(input=what, **SMALL)
    batch, losses = batch_of(strategy), drawn(0, 7).abs()
    state, order = taught(strategy, batch, drawn(1, 7), losses, 20), torch.tensor([3, 0, 6, 2, 5, 1, 4])
    moved = strategy.weigh(state, losses[order], permuted(batch, order))
    assert torch.allclose(moved, strategy.weigh(state, losses, batch)[order], atol=1e-5)


@pytest.mark.parametrize("what", INPUTS)
def test_rows_that_lower_the_targets_loss_gain(what: str) -> None:
    strategy = Dwm(input=what, **SMALL)
    batch, losses, products = batch_of(strategy), drawn(0, 7).abs(), torch.tensor([1.0, 1, 1, -1, -1, -1, -1])
    weights = strategy.weigh(taught(strategy, batch, products, losses, 60), losses, batch)
    assert float(weights[:3].mean()) > 1.5 and float(weights[3:].max()) < 0.5  # not each: equals share at random


def test_t5_equal_products_teach_nothing() -> None:
    strategy = Dwm(**SMALL)
    batch, losses = batch_of(strategy), drawn(0, 7).abs()
    first = taught(strategy, batch, torch.full((7,), 0.3), losses)
    second = strategy.learn(first, batch, Looked(losses.double(), torch.full((7,), -2.0).double(), 1.0))
    assert all(torch.equal(first.phi[name], second.phi[name]) for name in first.phi)


def test_a_lesson_goes_down_the_loss_after_the_step() -> None:
    """Of weights that are learnt for fixed products: their sum of shares times products rises, as the loss falls."""
    strategy = Dwm(**SMALL)
    batch, losses, products = batch_of(strategy), drawn(0, 7).abs(), drawn(5, 7)
    gains = [
        float((strategy.weigh(taught(strategy, batch, products, losses, k), losses, batch) * products).mean())
        for k in (0, 5, 20)
    ]
    assert gains[0] < gains[1] < gains[2]


def test_floor_and_entropy_keep_rows_in() -> None:
    losses, products = drawn(0, 7).abs(), torch.tensor([9.0, -1, -1, -1, -1, -1, -1])
    least = {}
    for name, more in {"plain": {}, "floor": {"floor": 0.4}, "entropy": {"entropy": 1.0}}.items():
        strategy = Dwm(**SMALL, **more)
        batch = batch_of(strategy)
        least[name] = float(strategy.weigh(taught(strategy, batch, products, losses, 60), losses, batch).min())
    assert least["plain"] < 0.1 < 0.4 <= least["floor"] + 1e-6 and least["entropy"] > 0.4


def test_rows_without_target_tokens_count_nothing_and_teach_nothing() -> None:
    strategy = Dwm(**SMALL)
    batch, losses = batch_of(strategy, tokens=[1, 0, 2, 1, 1, 1, 1]), drawn(0, 7).abs()
    one = taught(strategy, batch, drawn(1, 7), losses, 5)
    losses[1], products = 0.0, drawn(1, 7)
    products[1] = 50.0
    other = taught(strategy, batch, products, losses, 5)
    assert torch.allclose(strategy.weigh(one, losses, batch), strategy.weigh(other, losses, batch))
    weights = strategy.weigh(one, losses, batch)
    assert float(weights[1]) == 0 and float(weights.sum()) == pytest.approx(6, abs=1e-5)


def test_stages() -> None:
    strategy = Dwm(stages=4, meta_steps=3)
    assert strategy.boundaries(100) == [25, 50, 75]
    assert [step for step in range(100) if strategy.lessons(step, 100)] == [25, 50, 75]
    assert strategy.lessons_in(100) == 9 and not strategy.weighs(24, 100) and strategy.weighs(25, 100)
    assert Dwm(stages=4, meta_steps=0.2).lessons(25, 100) == 5
    assert Dwm(stages=1).lessons_in(100) == 0 and not Dwm(stages=1).weighs(50, 100)
    assert Dwm(stages=9).boundaries(3) == [1, 2]


def test_adam_is_torchs() -> None:
    at = {"a": drawn(0, 3, 2), "b": drawn(1, 4)}
    theirs = {name: torch.nn.Parameter(value.clone()) for name, value in at.items()}
    optimizer, moments = torch.optim.AdamW(theirs.values(), lr=0.1, weight_decay=0.2), no_moments(at)
    for k in range(5):
        gradients = {name: drawn(10 + k, *value.shape) * 3 for name, value in at.items()}
        for name, p in theirs.items():
            p.grad = gradients[name].clone()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        at, moments = adam(at, clipped(gradients, 1.0), moments, lr=0.1, decay=0.2)
        assert all(torch.allclose(at[name], p, atol=1e-6) for name, p in theirs.items())
    assert clipped(gradients, None) == gradients


def test_novelty_is_the_part_of_pairs_that_no_other_row_has() -> None:
    rows = torch.tensor([[1, 2, 3, -1], [1, 2, 4, 5], [7, 7, 7, 7], [9, -1, -1, -1]])
    assert novelty(rows).tolist() == pytest.approx([1 / 2, 2 / 3, 1, 0])


@given(st.integers(0, 1000), st.floats(0.5, 2), st.floats(-1, 1))
def test_features_standardise_losses_without_rows_that_have_no_targets(seed: int, scale: float, shift: float) -> None:
    losses, tokens = drawn(seed, 5).double() + 3, torch.tensor([2, 0, 1, 4, 3])
    rows, domain = torch.arange(20).view(5, 4), torch.tensor([0, 1, 1, 0, 2])
    one = features(losses, tokens, domain, rows, domains=3)
    other = features(losses * scale + shift, tokens, domain, rows, domains=3)
    assert one.shape == (5, 7) and torch.allclose(one[:, 1], other[:, 1], atol=1e-4)
    assert one[1, :2].tolist() == [0, 0] and one[:, 4:].argmax(1).tolist() == domain.tolist()


def test_the_network_ignores_rows_that_do_not_count_and_padding() -> None:
    shape, rows = Shape(6, 16, 2, 2, 11), torch.randint(0, 50, (5, 6), generator=torch.Generator().manual_seed(0))
    parameters = new_parameters(shape, seed=0)
    parameters["head.weight"] = drawn(1, *parameters["head.weight"].shape)
    rows[:, 4:] = -1
    present = torch.tensor([True, True, False, True, True])
    found = scores_of(parameters, shape, rows, present)
    rows[2] = 7
    assert torch.allclose(found[present], scores_of(parameters, shape, rows, present)[present], atol=1e-6)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize(
    "fields",
    [
        *({"input": "ids"}, {"stages": 0}, {"rows": 0}, {"width": 30, "heads": 4}, {"tau": 0.0}, {"floor": 1.5}),
        *({"entropy": -1.0}, {"meta_lr": -1.0}, {"meta_steps": 0}, {"clip": 0.0}, {"held_out": 1.0}),
        *({"target_rows": 0}, {"by": Lookahead(lr=0.0)}, {"reduction": "sum"}),
    ],
)
def test_wrong_settings_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError):
        Dwm(**fields)
