"""Selection for a target set: rules and aggregates against plain loops; what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.selection.rules import gumbel_top_k
from regimen.selection.targeted import Targeted
from regimen.selection.transport import unbalanced_transport
from regimen.signals.embedding import Embedding
from regimen.signals.similarity import Similarity
from tests.support.vector_meter import aiming, decided

BY = Similarity(of=Embedding())
LEVELS = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])  # their means are exact
SUBTASKS = [2, 1, 0, 3]  # one has no rows
MATRIX = st.lists(st.lists(LEVELS, min_size=6, max_size=6), min_size=1, max_size=12)
MANY = ["round_robin", "doubly_greedy", "rank_by_rank", "transport"]


def targeted(rule: str, aggregate: str | None, **fields) -> Targeted:
    return Targeted(by=BY, rule=rule, aggregate=aggregate, **{"ratio": None, **fields})


def see(rows, **fields):
    return aiming(torch.tensor(rows), by=BY, **{"subtasks": SUBTASKS, **fields})


def reduced(row: list[float], aggregate: str) -> float | list[float]:
    means = [sum(row[a:b]) / (b - a) for a, b in ((0, 2), (2, 3), (3, 6))]
    return {"subtask_max": max(means), "mean": sum(row) / 6, "max": max(row), "subtask": means}[aggregate]


@given(MATRIX, st.sampled_from(["subtask_max", "mean", "max"]), st.data())
def test_top_ranks_by_the_aggregate(rows, aggregate, data):
    k = data.draw(st.integers(1, len(rows)))
    expected = sorted(range(len(rows)), key=lambda i: (-round(reduced(rows[i], aggregate), 9), i))[:k]
    assert decided(targeted("top", aggregate, count=k), see(rows)) == expected


def by_turns(rows: list[list[float]], k: int) -> list[int]:
    taken: list[int] = []
    while len(taken) < k:
        column = len(taken) % len(rows[0])
        taken.append(min((i for i in range(len(rows)) if i not in taken), key=lambda i: (-rows[i][column], i)))
    return taken


@given(MATRIX, st.booleans(), st.data())
def test_round_robin_over_target_rows_or_subtasks(rows, grouped, data):
    k = data.draw(st.integers(1, len(rows)))
    columns = [[round(m, 9) for m in reduced(row, "subtask")] for row in rows] if grouped else rows
    found = decided(targeted("round_robin", "subtask" if grouped else None, count=k), see(rows))
    assert found == by_turns(columns, k)


@given(MATRIX, st.data())
def test_doubly_greedy_is_the_highest_to_any(rows, data):
    k = data.draw(st.integers(1, len(rows)))
    found = decided(targeted("doubly_greedy", None, count=k), see(rows))
    assert found == sorted(range(len(rows)), key=lambda i: (-max(rows[i]), i))[:k]
    assert found == decided(targeted("top", "max", count=k), see(rows))


@given(MATRIX, st.integers(1, 12), st.data())
def test_rank_by_rank_with_so_many_neighbours(rows, neighbours, data):
    columns = [sorted(range(len(rows)), key=lambda i: (-rows[i][m], i))[:neighbours] for m in range(6)]
    reached = list(dict.fromkeys(i for rank in zip(*columns, strict=True) for i in rank))
    k = data.draw(st.integers(1, len(reached)))
    assert decided(targeted("rank_by_rank", None, neighbours=neighbours, count=k), see(rows)) == reached[:k]
    if len(reached) < len(rows):
        with pytest.raises(ConfigError, match="search more neighbours"):
            decided(targeted("rank_by_rank", None, neighbours=neighbours, count=len(rows)), see(rows))


def test_transport_keeps_the_rows_with_most_mass():
    values = torch.rand(30, 6, generator=generator(1)) * 2 - 1
    mass = unbalanced_transport((1 - values.double()) / 2, epsilon=0.1, penalty=0.01)
    selector = targeted("transport", None, epsilon=0.1, penalty=0.01, count=7)
    assert decided(selector, aiming(values, by=BY, subtasks=SUBTASKS)) == mass.argsort(descending=True)[:7].tolist()
    near = targeted("transport", None, epsilon=1e-3, penalty=1e-9, count=2)
    favourites = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.8, 0.3], [0.2, 0.3, 0.4]])
    assert decided(near, aiming(favourites, by=BY, subtasks=[3])) == [1, 0]  # two target rows, and one


def test_gumbel_draws_from_the_softmax_of_the_aggregate():
    values = torch.rand(20, 6, generator=generator(2))
    scores = values.double().mean(1)
    expected = gumbel_top_k(scores, 5, generator=generator(9), temperature=0.1).tolist()
    assert decided(targeted("gumbel", "mean", temperature=0.1, count=5), see(values.tolist(), seed=9)) == expected
    cold = decided(targeted("gumbel", "mean", temperature=0.0, count=5), see(values.tolist()))
    assert cold == decided(targeted("top", "mean", count=5), see(values.tolist()))


@pytest.mark.parametrize(
    ("rule", "aggregate"), [("top", "subtask_max"), ("gumbel", "mean"), *((r, None) for r in MANY)]
)
@given(MATRIX, st.data())
@settings(max_examples=25)
def test_the_order_in_which_rows_are_given_does_not_matter(rule, aggregate, rows, data):
    k = data.draw(st.integers(1, len(rows)))
    ids = torch.arange(len(rows)) * 3 + 2
    mixed = torch.randperm(len(rows), generator=generator(k))
    selector = targeted(rule, aggregate, count=k)
    plain = decided(selector, see(rows, ids=ids))
    assert decided(selector, see([rows[i] for i in mixed.tolist()], ids=ids[mixed])) == plain
    assert len(plain) == k


@pytest.mark.parametrize(("rule", "aggregate"), [("top", "mean"), *((rule, None) for rule in MANY)])
def test_a_share_of_the_tokens_is_the_first_of_the_ranking(rule, aggregate):
    values = torch.rand(12, 6, generator=generator(3)).tolist()
    tokens = [1, 5, 2, 9, 4, 4, 7, 1, 3, 8, 2, 6]
    ranking = decided(targeted(rule, aggregate, count=12), see(values, tokens=tokens))
    found = decided(targeted(rule, aggregate, token_ratio=0.4), see(values, tokens=tokens))
    assert found == ranking[: len(found)]
    assert abs(sum(tokens[i] for i in found) - 0.4 * sum(tokens)) <= max(tokens) / 2


def test_a_share_of_the_tokens_that_neighbours_do_not_hold():
    values = [[1.0], [0.5], [0.0], [-1.0]]
    few = targeted("rank_by_rank", None, neighbours=2, token_ratio=0.5)
    assert decided(few, see(values, subtasks=[1])) == [0, 1]
    with pytest.raises(ConfigError, match="2 distinct neighbours, token_ratio=1"):
        decided(targeted("rank_by_rank", None, neighbours=2, token_ratio=1.0), see(values, subtasks=[1]))


def test_the_maximum_does_not_change_with_a_subtask_twice_and_follows_each_column():
    """T3 of LESS: duplicate subtasks, positive scales of all."""
    values = torch.randn(20, 3, generator=generator(4))
    selector = targeted("top", "subtask_max", count=6)
    found = decided(selector, aiming(values, by=BY, subtasks=[2, 1]))
    assert decided(selector, aiming(torch.cat([values, values[:, :2]], 1), by=BY, subtasks=[2, 1, 2])) == found
    assert decided(selector, aiming(values * 7, by=BY, subtasks=[2, 1])) == found


def test_values_that_are_no_similarities():
    broken = torch.rand(5, 6)
    broken[2, 1], broken[4, 0] = torch.nan, torch.inf
    ids = torch.tensor([3, 5, 8, 9, 11])
    for rule, aggregate in (("top", "mean"), ("round_robin", None)):
        with pytest.raises(ConfigError, match=r"NaN or infinite for 2 of 5 rows.*\n.*ids \[8, 11\]"):
            decided(targeted(rule, aggregate, count=1), aiming(broken, by=BY, ids=ids, subtasks=SUBTASKS))
    with pytest.raises(ConfigError, match="method=topk"):
        decided(targeted("top", "mean", count=1), aiming(torch.rand(5), by=BY, subtasks=SUBTASKS))


def test_subtasks_need_a_target_set_whose_rows_are_the_columns():
    for rule, aggregate in (("top", "subtask_max"), ("round_robin", "subtask")):
        with pytest.raises(ConfigError, match="dataset.target.path=FILE or dataset.target.from"):
            decided(targeted(rule, aggregate, count=1), see([[0.0] * 6], subtasks=None))
        with pytest.raises(ConfigError, match="5 columns, 6 target rows"):
            decided(targeted(rule, aggregate, count=1), see([[0.0] * 5]))
    assert decided(targeted("top", "max", count=1), see([[0.0, 1.0], [2.0, 0.0]], subtasks=None)) == [1]


def test_amounts_that_cannot_be_kept():
    for rule in MANY:
        with pytest.raises(ConfigError, match="1 to 2"):
            decided(targeted(rule, None, count=3), see([[0.0] * 6] * 2))
    with pytest.raises(ConfigError, match="keeps no row"):
        decided(Targeted(by=BY), see([[0.0] * 6] * 19))
    assert decided(Targeted(by=BY), see([[0.0] * 6] * 20)) == [0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rule": "best"}, "rank_by_rank"),
        ({"aggregate": "sum"}, "subtask_max, mean"),
        ({"aggregate": None}, "aggregate=subtask_max"),
        ({"aggregate": "subtask"}, "ranks rows by one number"),
        ({"rule": "round_robin"}, "set aggregate=null"),
        ({"rule": "transport", "aggregate": "mean"}, "a column for each"),
        ({"neighbours": 0}, "neighbours"),
        ({"temperature": -1.0}, "temperature"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"penalty": float("inf")}, "penalty"),
        ({"ratio": 0.0}, "ratio"),
        ({"count": 3}, "set the other to null"),
        ({"ratio": None}, "one of the two"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_settings_that_cannot_work(fields, words):
    with pytest.raises(ConfigError, match=words):
        Targeted(by=BY, **fields)
