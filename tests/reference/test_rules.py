"""Selection rules against their definitions: sorting pairs, plain loops, and the probabilities of successive draws."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.selection.rules import (
    doubly_greedy,
    gumbel_top_k,
    inverse_propensity,
    rank_by_rank,
    round_robin,
    top_k,
)

LEVELS = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
MATRIX = st.integers(1, 4).flatmap(lambda m: st.lists(st.lists(LEVELS, min_size=m, max_size=m), min_size=1, max_size=9))


def inclusion(weights: list[float], size: int) -> torch.Tensor:
    """Probability (n,) that each row is among `size` successive draws without replacement."""
    chances = torch.zeros(len(weights), dtype=torch.float64)
    for drawn in permutations(range(len(weights)), size):
        chance, left = 1.0, sum(weights)
        for row in drawn:
            chance *= weights[row] / left
            left -= weights[row]
        chances[list(drawn)] += chance
    return chances


def frequency(rule, draws: int = 3000) -> torch.Tensor:
    """How often each of five rows is drawn by `rule(generator)`."""
    hits = torch.zeros(5, dtype=torch.float64)
    for seed in range(draws):
        hits[rule(generator(seed))] += 1
    return hits / draws


def assert_close(found: torch.Tensor, expected: torch.Tensor, draws: int = 3000) -> None:
    assert bool(((found - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all())


@given(st.lists(LEVELS, min_size=1, max_size=20), st.data())
def test_top_k_equals_sorting_pairs(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top_k(torch.tensor(scores), k).tolist() == expected
    assert gumbel_top_k(torch.tensor(scores), k, generator=generator(0), temperature=0.0).tolist() == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gumbel_draws_from_the_softmax_without_replacement(temperature):
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    weights = (logits / temperature).exp().tolist()
    for k in (1, 2, 4):
        found = frequency(lambda g, k=k: gumbel_top_k(logits, k, generator=g, temperature=temperature))
        assert_close(found, inclusion(weights, k))


def test_gumbel_with_infinite_logits():
    logits = torch.tensor([-torch.inf, 0.0, torch.inf, 0.0])
    for seed in range(20):
        drawn = gumbel_top_k(logits, 4, generator=generator(seed)).tolist()
        assert drawn[0] == 2 and drawn[-1] == 0


def test_inverse_propensity_divides_by_the_density():
    density = torch.tensor([1.0, 2.0, 4.0, 1.0, 10.0])
    assert_close(frequency(lambda g: inverse_propensity(density, 2, generator=g)), inclusion((1 / density).tolist(), 2))


@given(MATRIX, st.data())
def test_round_robin_equals_the_naive_loop(rows, data):
    k = data.draw(st.integers(1, len(rows)))
    taken: list[int] = []
    while len(taken) < k:
        query = len(taken) % len(rows[0])
        taken.append(min((i for i in range(len(rows)) if i not in taken), key=lambda i: (-rows[i][query], i)))
    assert round_robin(torch.tensor(rows), k).tolist() == taken


@given(MATRIX, st.data())
def test_doubly_greedy_ranks_by_the_best_query(rows, data):
    k = data.draw(st.integers(1, len(rows)))
    expected = sorted(range(len(rows)), key=lambda i: (-max(rows[i]), i))[:k]
    assert doubly_greedy(torch.tensor(rows), k).tolist() == expected


def test_rank_by_rank_goes_column_by_column():
    neighbours = torch.tensor([[3, 1, 2], [3, 0, -1], [5, 3, 1]])
    assert rank_by_rank(neighbours, 5).tolist() == [3, 5, 1, 0, 2]
    with pytest.raises(ConfigError, match="5 distinct neighbours, 6 rows"):
        rank_by_rank(neighbours, 6)


def test_round_robin_gives_the_turn_that_rank_by_rank_loses():
    similarity = torch.tensor([[0.9, 0.9], [0.8, 0.1], [0.1, 0.8], [0.0, 0.0]])
    nearest = similarity.argsort(dim=0, descending=True, stable=True).T
    assert rank_by_rank(nearest, 3).tolist() == [0, 1, 2]
    assert round_robin(similarity, 3).tolist() == [0, 2, 1]


def test_a_query_that_is_in_the_pool_is_selected_first():
    points = torch.randn(30, 8, generator=generator(1), dtype=torch.float64)
    queries = [17, 4, 22]
    distance = torch.cdist(points[queries], points)
    assert rank_by_rank(distance.argsort(dim=1, stable=True), 3).tolist() == queries
    assert round_robin(-distance.T, 3).tolist() == queries
