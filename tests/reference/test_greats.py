"""GREATS: top-k without interaction, no duplicates with it, its own objective by brute force, the limit eta -> 0."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import Sketch
from regimen.selection.greats import Greats, greedy
from regimen.signals.gradients import GradientSketch
from tests.reference.valuing import seeing_gradients

BY = GradientSketch(sketch=Sketch(dimensions=4))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(selector: Greats, gradients: Tensor, target: Tensor, *, horizon: int, **seen: object) -> list[int]:
    """Ids in the order picked."""
    given_rows = seeing_gradients(BY, gradients, target, horizon=horizon, **seen)  # type: ignore[arg-type]
    chosen = selector.decide(selector.init(given_rows.index), given_rows)
    assert selector.checked(chosen, given_rows).ids.tolist() == sorted(chosen.tolist())
    return chosen.tolist()


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 100))
def test_without_interaction_it_is_top_k(seed, k, lr):
    gradients, target = drawn(seed, 12, 4), drawn(seed + 1, 3, 4)
    scores = gradients.float().double() @ target.float().double().mean(0)
    expected = scores.argsort(descending=True, stable=True)[:k].tolist()
    assert kept(Greats(by=BY, interaction=False), gradients, target, horizon=k, lr=lr) == expected
    assert kept(Greats(by=BY, lr=0.0), gradients, target, horizon=k, lr=lr) == expected


@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0.01, 3))
def test_scores_as_the_paper_prints_them(seed, k, eta):
    """Times eta, with the whole matrix of interactions: the same rows in the same order."""
    gradients, target = drawn(seed, 9, 4), drawn(seed + 1, 3, 4)
    gradients, target = gradients.float().double(), target.float().double()
    scores, interaction = eta * gradients @ target.mean(0), eta**2 * gradients @ gradients.T
    expected: list[int] = []
    for _ in range(k):
        left = [i for i in range(9) if i not in expected]
        best = max(left, key=lambda i: (float(scores[i]), -i))
        expected.append(best)
        scores = scores - interaction[best]
    assert kept(Greats(by=BY), gradients, target, horizon=k, lr=eta) == expected


def test_a_duplicate_of_a_pick_is_never_next():
    gradients = torch.tensor([[3.0, 0, 0, 0], [3.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0.5, 0]])
    target = torch.tensor([[1.0, 1, 1, 1]])
    assert kept(Greats(by=BY), gradients, target, horizon=2, lr=1e-6) == [0, 1]
    for lr in (1.0, 10.0):
        assert kept(Greats(by=BY), gradients, target, horizon=2, lr=lr) == [0, 2]
    assert kept(Greats(by=BY, lr=1.0), gradients, target, horizon=4, lr=1e-6) == [0, 2, 3, 1]
    assert kept(Greats(by=BY), gradients, target, horizon=2, lr=0.4) == [0, 2]
    assert kept(Greats(by=BY, update="mean"), gradients, target, horizon=2, lr=0.4) == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_near_the_best_of_all_subsets(seed):
    """U(S) = eta S . v - eta^2 |S|^2 / 2, S the sum of the rows: each pick has the largest marginal gain."""
    gradients, wanted, eta, k = drawn(seed, 10, 6), drawn(seed + 100, 6), 0.1, 3

    def utility(rows: tuple[int, ...]) -> float:
        step = gradients[list(rows)].sum(0)
        return float(eta * step @ wanted - eta**2 / 2 * step @ step)

    picked = tuple(greedy(gradients, wanted, k, eta=eta, self_term=True).tolist())
    for place in range(k):
        gains = {i: utility((*picked[:place], i)) for i in range(10) if i not in picked[:place]}
        assert gains[picked[place]] == pytest.approx(max(gains.values()), abs=1e-12)
    best = max(utility(rows) for rows in combinations(range(10), k))
    assert utility(picked) >= 0.9 * best


def test_a_small_step_ranks_rows_by_the_target_loss_that_each_leaves():
    """A network of two layers: the loss of the target after one step on each row alone, as eta -> 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    x, y, wanted_x, wanted_y = drawn(1, 8, 3), torch.arange(8) % 4, drawn(2, 5, 3), torch.arange(5) % 4
    parameters = list(model.parameters())

    def gradient(inputs: Tensor, labels: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), parameters))

    def flat(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts])

    rows = [gradient(x[i : i + 1], y[i : i + 1]) for i in range(8)]
    target = torch.stack([flat(gradient(wanted_x[j : j + 1], wanted_y[j : j + 1])) for j in range(5)])
    left, eta = [], 1e-4
    for row in rows:
        with torch.no_grad():
            for parameter, part in zip(parameters, row, strict=True):
                parameter -= eta * part
            left.append(float(nn.functional.cross_entropy(model(wanted_x), wanted_y)))
            for parameter, part in zip(parameters, row, strict=True):
                parameter += eta * part
    by_loss = sorted(range(8), key=left.__getitem__)
    assert kept(Greats(by=BY), torch.stack([flat(row) for row in rows]), target, horizon=8, lr=eta) == by_loss


def test_the_order_in_which_rows_come_does_not_matter():
    gradients, target, ids = drawn(3, 8, 4), drawn(4, 2, 4), [5, 7, 9, 11, 13, 15, 17, 19]
    expected = kept(Greats(by=BY), gradients, target, horizon=3, lr=0.3, ids=ids)
    mixed = [6, 2, 0, 7, 1, 5, 3, 4]
    got = kept(Greats(by=BY), gradients[mixed], target, horizon=3, lr=0.3, ids=[ids[i] for i in mixed])
    assert got == expected
    assert set(expected) <= set(ids)


def test_too_few_candidates_are_told():
    gradients, target = drawn(5, 4, 4), drawn(6, 2, 4)
    for horizon, words in ((3, None), (4, "chose nothing"), (5, "rows repeat")):
        seen = seeing_gradients(BY, gradients, target, horizon=horizon)
        selector = Greats(by=BY, candidates=4)
        decision = selector.checked(selector.decide(None, seen), seen)
        assert len(decision.ids) == min(horizon, 4)
        notes = selector.notes(None, decision, seen)
        assert bool(notes) == (words is not None)
        assert words is None or words in notes[0]


def test_a_target_set_is_needed():
    with pytest.raises(ConfigError, match=r"dataset\.target\.path"):
        Greats(by=BY).decide(None, seeing_gradients(BY, drawn(0, 3, 4), None))
    assert Greats(by=BY).needs() == Greats(by=BY).needs_of_target() == (BY,)


@pytest.mark.parametrize("fields", [{"lr": -1.0}, {"lr": float("nan")}, {"update": "median"}, {"candidates": 0}])
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        Greats(**fields)
