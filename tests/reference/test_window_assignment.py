"""Window assignment: the best of all assignments by brute force, the closed form of two windows, and its file."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.ordering.transport import assign, capacities
from regimen.ordering.window_assignment import WindowAssignment
from regimen.signals.file_windows import FileWindows
from regimen.signals.gradients import GradientSketch
from tests.reference.observations import index_of, seeing

BY = GradientSketch()  # any signal of vectors


def served(orderer: WindowAssignment, scores: torch.Tensor, ids: list[int] | None = None, seed: int = 0) -> list[int]:
    seen = seeing(scores, ids=ids, by=BY, seed=seed)
    return orderer.checked(orderer.decide(orderer.init(seen.index), seen), seen).tolist()


def drawn(n: int, windows: int, seed: int) -> torch.Tensor:
    return torch.randn(n, windows, generator=generator("windows", seed), dtype=torch.float64)


def total(values: torch.Tensor, window: torch.Tensor) -> float:
    return float(values.gather(1, window[:, None]).sum())


@pytest.mark.parametrize(("n", "windows"), [(6, 2), (7, 3), (7, 2), (5, 5)])
def test_the_best_of_all_assignments(n: int, windows: int) -> None:
    for seed in range(3):
        values = drawn(n, windows, seed)
        slots = torch.arange(windows).repeat_interleave(capacities(n, windows))  # (n,)
        best = max(total(values, slots[list(p)]) for p in permutations(range(n)))
        window = assign(values)
        assert total(values, window) == pytest.approx(best, abs=1e-9)
        assert torch.equal(torch.bincount(window, minlength=windows), capacities(n, windows))


@given(st.integers(2, 40), st.integers(0, 50))
@settings(max_examples=30)
def test_two_windows_in_closed_form(n: int, seed: int) -> None:
    """The rows whose score falls most from the first window to the second go first."""
    values = drawn(n, 2, seed)
    first = (values[:, 0] - values[:, 1]).argsort(descending=True)[: n // 2]
    assert sorted((assign(values) == 0).nonzero()[:, 0].tolist()) == sorted(first.tolist())


def test_equals_the_linear_programme_and_takes_ties() -> None:
    from scipy.optimize import linear_sum_assignment

    for n, windows, levels in ((60, 4, 0), (61, 7, 0), (48, 5, 3), (30, 30, 2)):
        values = drawn(n, windows, n)
        if levels:
            values = (values * levels).round()
        slots = torch.arange(windows).repeat_interleave(capacities(n, windows))
        rows, places = linear_sum_assignment(values[:, slots].numpy(), maximize=True)
        best = float(values[torch.from_numpy(rows), slots[torch.from_numpy(places)]].sum())
        window = assign(values)
        assert total(values, window) == pytest.approx(best, abs=1e-9)
        assert torch.equal(torch.bincount(window, minlength=windows), capacities(n, windows))


@given(st.integers(0, 30), st.integers(1, 6))
@settings(max_examples=30)
def test_scale_of_the_scores_and_shifts_of_rows_change_nothing(seed: int, windows: int) -> None:
    values = drawn(4 * windows, windows, seed)
    moved = 1e-6 * values + drawn(4 * windows, 1, seed + 1) * 1e-6
    assert torch.equal(assign(values), assign(moved))


def test_windows_are_served_in_their_order() -> None:
    """Row i is worth 1 in window i mod 3 alone."""
    scores = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).double()
    order = served(WindowAssignment(by=BY), scores)
    assert [sorted(order[i : i + 4]) for i in (0, 4, 8)] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert order != sorted(order, key=lambda i: (i % 3, i)), "shuffled inside"
    assert served(WindowAssignment(by=BY, inside="best"), scores) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    low = served(WindowAssignment(by=BY, polarity=-1), -scores)
    assert [sorted(low[i : i + 4]) for i in (0, 4, 8)] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_best_first_inside_a_window() -> None:
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.0, 7.0], [0.0, 6.0]])
    assert served(WindowAssignment(by=BY, inside="best"), scores) == [1, 2, 0, 4, 5, 3]


def test_zscores_keep_a_loud_window_from_deciding_alone() -> None:
    values = drawn(30, 3, 5)
    loud = values * torch.tensor([1.0, 1e3, 1.0])
    scaled = WindowAssignment(by=BY, scale="zscore", inside="best")
    assert served(scaled, loud) == served(scaled, values)
    assert served(WindowAssignment(by=BY, inside="best"), loud) != served(scaled, loud)
    assert sorted(served(scaled, torch.ones(6, 3))) == list(range(6))


@given(st.integers(4, 20), st.sampled_from(["random", "best"]), st.integers(0, 3))
@settings(max_examples=30)
def test_an_order_depends_on_rows_and_seed_alone(n: int, inside: str, seed: int) -> None:
    orderer, ids, scores = WindowAssignment(by=BY, inside=inside), [3 * i + 1 for i in range(n)], drawn(n, 3, seed)
    scores[0] = scores[1]
    order = served(orderer, scores, ids, seed)
    mixed = torch.randperm(n, generator=generator(seed))
    assert sorted(order) == ids
    assert served(orderer, scores[mixed], [ids[i] for i in mixed.tolist()], seed) == order


def test_edges_are_refused_with_the_way_out() -> None:
    assert served(WindowAssignment(by=BY), torch.zeros(0, 3)) == []
    assert served(WindowAssignment(by=BY), torch.ones(1, 1)) == [0]
    with pytest.raises(ConfigError, match="(?s)fewer rows.*2 rows, 3 windows.*raise the budget"):
        served(WindowAssignment(by=BY), torch.ones(2, 3))
    for scores in (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.zeros(4)):
        with pytest.raises(ConfigError, match="no finite score"):
            served(WindowAssignment(by=BY), scores)
    for wrong in ({"polarity": 0}, {"scale": "max"}, {"inside": "sorted"}):
        with pytest.raises(ConfigError):
            WindowAssignment(by=BY, **wrong)


class Rows:
    """A meter that knows how many rows there are."""

    index = index_of([4])


def test_scores_by_window_from_files(tmp_path: Path) -> None:
    scores = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "a.npy", scores)
    (tmp_path / "a.csv").write_text("id,early,late\n" + "".join(f"{i},{i},{-i}\n" for i in (3, 1, 0, 2)))
    ids = torch.tensor([2, 0])
    assert FileWindows(path=str(tmp_path / "a.npy")).measure(Rows(), ids).tolist() == scores[[2, 0]].tolist()
    table = FileWindows(path=str(tmp_path / "a.csv"), columns=["early", "late"])
    assert table.measure(Rows(), ids).tolist() == [[2.0, -2.0], [0.0, 0.0]]
    (tmp_path / "a.csv").write_text("id,early,late\n0,1,1\n1,nan,2\n")
    with pytest.raises(ConfigError, match=r"(?s)3 of 4 rows.*rows \[1, 2, 3\]"):
        table.measure(Rows(), torch.arange(4))
    np.save(tmp_path / "a.npy", scores[:3])
    with pytest.raises(ConfigError, match="by row and window"):
        FileWindows(path=str(tmp_path / "a.npy")).measure(Rows(), ids)
    for wrong in (
        {"path": ""},
        {"path": "no/such.npy"},
        {"path": str(tmp_path / "a.npy"), "columns": ["x"]},
        {"path": str(tmp_path / "a.csv")},
    ):
        with pytest.raises(ConfigError, match="do:"):
            FileWindows(**wrong)
