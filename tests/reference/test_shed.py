"""SHED (arXiv 2405.00705): values by removal against closed forms of games, the two rules, and the plumbing of runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Observation
from regimen.selection.shapley import group_shapley, quality_ordered, quality_weighted, removals
from regimen.selection.shed import Shed, ShedSubset
from regimen.signals.ngrams import NgramFeatures
from tests.reference.observations import index_of, seeing
from tests.reference.valuing import shapley

BY = NgramFeatures(dimensions=4)
Worth = Callable[[Tensor], float]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_removal(players: int, worth: Worth, *, passes: int, blocks: int, seed: int = 0) -> Tensor:
    taken = [removals(players, blocks=blocks, number=p, seed=seed) for p in range(passes)]
    table = [[worth(torch.cat([*left[k:], left[0][:0]])) for k in range(blocks + 1)] for left in taken]
    return group_shapley(taken, torch.tensor(table, dtype=torch.float64))


def pairs(seed: int) -> tuple[Worth, Tensor]:
    """A game of 8 players with an own part and a part for each pair; its values a_i + sum_j W_ij / 2."""
    a, w = drawn(seed, 8), 0.2 * drawn(seed + 1, 8, 8)
    w = (w + w.T).fill_diagonal_(0)
    return lambda rows: float(a[rows].sum() + w[rows][:, rows].sum() / 2), a + w.sum(1) / 2


def test_an_additive_game_is_exact_after_one_pass():
    a = drawn(0, 9)
    got = by_removal(9, lambda rows: float(a[rows].sum()), passes=1, blocks=9)
    assert got.tolist() == pytest.approx(a.tolist(), abs=1e-14)


@pytest.mark.parametrize("passes", [1, 2, 7])
@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_values_add_up_to_all_less_none(passes, blocks):
    worth, _ = pairs(3)
    total = float(by_removal(8, lambda rows: worth(rows) + 5, passes=passes, blocks=blocks).sum())
    assert total == pytest.approx(worth(torch.arange(8)), abs=1e-12)


def test_the_closed_form_of_pairs_is_the_shapley_value():
    worth, values = pairs(5)
    exact = shapley(8, lambda rows: worth(torch.tensor(sorted(rows), dtype=torch.int64)))
    assert values.tolist() == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("blocks", "passes", "least"), [(8, 10, 0.95), (8, 100, 0.995), (2, 10, 0.7), (2, 200, 0.95)])
def test_values_of_pairs_come_nearer_with_passes(blocks, passes, least):
    found = []
    for seed in range(5):
        worth, values = pairs(10 * seed)
        got = by_removal(8, worth, passes=passes, blocks=blocks, seed=seed)
        found.append(float(np.corrcoef(got, values)[0, 1]))
    assert np.mean(found) > least


def test_a_player_that_adds_nothing_and_two_that_are_alike():
    def worth(rows: Tensor) -> float:
        held = set(rows.tolist())
        return 3.0 * bool(held & {0, 1}) + (2.0 if {2, 3} <= held else 0.0)  # 4 adds nothing

    got = by_removal(5, worth, passes=400, blocks=5)
    assert got.tolist() == pytest.approx([1.5, 1.5, 1, 1, 0], abs=0.25)
    assert float(got[4]) == 0


def test_blocks_part_the_players():
    for blocks in (2, 3, 7):
        taken = removals(7, blocks=blocks, number=1, seed=4)
        assert sorted(torch.cat(taken).tolist()) == list(range(7))
        sizes = [len(block) for block in taken]
        assert len(sizes) == blocks
        assert max(sizes) - min(sizes) <= 1
    first, second = (torch.cat(removals(20, blocks=4, number=n, seed=4)) for n in (0, 1))
    assert first.tolist() != second.tolist()


LABEL = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])


def test_whole_clusters_in_the_order_of_their_values():
    assert quality_ordered(torch.tensor([0.5, 2.0, -1.0]), LABEL).tolist() == [1, 3, 7, 0, 4, 2, 5, 6]
    assert quality_ordered(torch.zeros(3), LABEL).tolist() == [0, 4, 1, 3, 7, 2, 5, 6]


def chances(factor: float, values: list[float], draws: int = 1500) -> tuple[Tensor, Tensor]:
    """How often each cluster, and each row, comes first."""
    clusters, rows, rng = torch.zeros(3), torch.zeros(8), torch.Generator().manual_seed(0)
    for _ in range(draws):
        first = int(quality_weighted(torch.tensor(values).double(), LABEL, factor=factor, rng=rng)[0])
        clusters[LABEL[first]] += 1 / draws
        rows[first] += 1 / draws
    return clusters, rows


def test_clusters_are_drawn_from_the_softmax_and_members_alike():
    for factor in (0.0, 1.0):
        clusters, rows = chances(factor, [0.0, 1.0, -0.5])
        expected = (factor * torch.tensor([0.0, 1.0, -0.5])).softmax(0)
        assert clusters.tolist() == pytest.approx(expected.tolist(), abs=0.065)
        even = (expected / torch.bincount(LABEL))[LABEL]
        assert rows.tolist() == pytest.approx(even.tolist(), abs=0.05)


def test_successive_draws_are_those_of_the_definition():
    """Clusters of one and two rows, uniform: the pair is used up after two draws with probability 1/2 * 1/2."""
    label, rng, hits = torch.tensor([0, 1, 1]), torch.Generator().manual_seed(1), 0
    for _ in range(1500):
        order = quality_weighted(torch.zeros(2).double(), label, factor=0.0, rng=rng)
        assert sorted(order.tolist()) == [0, 1, 2]
        hits += int(order[2]) == 0
    assert hits / 1500 == pytest.approx(0.25, abs=0.056)


def test_a_large_factor_is_the_order_of_values():
    values, rng = torch.tensor([0.5, 2.0, -1.0]).double(), torch.Generator().manual_seed(0)
    order = quality_weighted(values, LABEL, factor=1e6, rng=rng)
    assert LABEL[order].tolist() == LABEL[quality_ordered(values, LABEL)].tolist()


# ---- the strategies -----------------------------------------------------------------------------------------


def looking_at(groups: int = 4, rows: int = 20, *, mixed: bool = False) -> Observation:
    """Rows of tight clusters, row i in cluster i mod `groups`."""
    ids = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) if mixed else torch.arange(rows)
    points = torch.eye(4).double()[ids % groups] + 0.01 * drawn(0, rows, 4)[ids]
    return dataclasses.replace(seeing(torch.zeros(rows), ids=ids, index=index_of([rows])), values={BY: points})


def losses(rows: Tensor, seen: Observation) -> dict[str, float]:
    """A run's losses: each cluster that is trained on takes its own number off."""
    gone = sum(0.1 * (1 + c) for c in set((rows % 4).tolist()))
    return {"a": 5 - gone, "b": 7 - gone}


def runs(seen: Observation, *, blocks: int, count: int, seed: int = 0) -> list[dict[str, float]]:
    out = []
    for member in range(count):
        subset = ShedSubset(by=BY, clusters=4, blocks=blocks, member=member, seed=seed)
        out.append(losses(subset.decide(None, seen), seen))
    return out


def shed(seen: Observation, **fields: object) -> Shed:
    common = {"by": BY, "clusters": 4, "blocks": 4, "empty": {"a": 5.0, "b": 7.0}}
    if "utilities" not in fields:
        common["utilities"] = runs(seen, blocks=4, count=7)
    return Shed(**{**common, **fields})  # type: ignore[arg-type]


def test_members_of_the_set_are_what_passes_leave():
    seen = looking_at()
    whole = ShedSubset(by=BY, clusters=4, blocks=4).decide(None, seen)
    assert sorted((whole % 4).tolist()) == [0, 1, 2, 3]
    for number in (0, 1):
        before = set(whole.tolist())
        for removed in (1, 2, 3):
            subset = ShedSubset(by=BY, clusters=4, blocks=4, member=3 * number + removed)
            left = set(subset.decide(None, seen).tolist())
            assert left < before
            assert len(left) == 4 - removed
            before = left


def test_values_of_clusters_are_what_each_takes_off_the_loss():
    """Additive losses: exact after any pass, and the rows of the best clusters are kept."""
    seen = looking_at()
    strategy = shed(seen)
    found = strategy.clustered(seen)
    assert strategy.values(found).tolist() == pytest.approx([0.1 * (1 + int(r) % 4) for r in found.proxies])
    kept = strategy.checked(strategy.decide(None, seen), seen).ids
    assert kept.tolist() == [row for row in range(20) if row % 4 in (2, 3)]
    first = shed(seen, ratio=None, count=5).decide(None, seen)
    assert first.tolist() == [3, 7, 11, 15, 19]


def test_the_order_in_which_rows_come_does_not_matter():
    plain, mixed = looking_at(), looking_at(mixed=True)
    for fields in ({}, {"rule": "qwcs"}):
        a, b = (shed(plain, ratio=0.4, **fields).decide(None, seen).tolist() for seen in (plain, mixed))
        assert a == b


def test_drawn_by_value():
    seen = looking_at()
    sharp = shed(seen, rule="qwcs", factor=1e6).decide(None, seen)
    assert sorted(sharp.tolist()) == sorted(shed(seen).decide(None, seen).tolist())
    everything = shed(seen, rule="qwcs", factor=1e6, ratio=1.0).decide(None, seen)
    assert sorted(everything.tolist()) == list(range(20))
    tokens = shed(seen, rule="qwcs", ratio=None, token_ratio=0.25).decide(None, seen)
    assert len(tokens) == 5


def test_runs_that_are_no_passes_are_refused():
    seen = looking_at()
    for count in (2, 3, 6):
        with pytest.raises(ConfigError, match=r"4, 7, 10, \.\.\. runs"):
            shed(seen, utilities=runs(seen, blocks=4, count=count))
    with pytest.raises(ConfigError, match="1 runs"):
        shed(seen, utilities={"a": 1.0}).decide(None, seen)
    with pytest.raises(ConfigError, match="no loss that is a number"):
        shed(seen, utilities=[{"a": float("nan")}] * 4).decide(None, seen)


def test_rows_that_are_too_alike_are_refused():
    seen = looking_at(groups=2)
    same = dataclasses.replace(seen, values={BY: seen.values[BY].round()})
    with pytest.raises(ConfigError, match="2 clusters"):
        ShedSubset(by=BY, clusters=4, blocks=4).decide(None, same)


@pytest.mark.parametrize(
    "fields",
    [
        {"blocks": 1},
        {"blocks": 5},
        {"rounds": 0},
        {"candidates": 8},
        {"rule": "best"},
        {"factor": -1.0},
        {"ratio": None},
        {"utilities": None},
        {"empty": None},
    ],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        shed(looking_at(), **{"utilities": {"a": 1.0}, **fields})
    with pytest.raises(ConfigError):
        ShedSubset(by=BY, member=-1)


def by_many_removals(seed: int, *, passes: int, blocks: int) -> float:
    """Correlation with the values of a game of pairs, all sets of all passes at once."""
    _, values = pairs(seed)
    a, w = drawn(seed, 8), 0.2 * drawn(seed + 1, 8, 8)
    w = (w + w.T).fill_diagonal_(0)
    taken = [removals(8, blocks=blocks, number=p, seed=seed) for p in range(passes)]
    inside = torch.ones(passes, blocks + 1, 8, dtype=torch.float64)
    for p, left in enumerate(taken):
        for k, block in enumerate(left):
            inside[p, k + 1 :, block] = 0
    worth = inside @ a + torch.einsum("pki,ij,pkj->pk", inside, w, inside) / 2
    return float(np.corrcoef(group_shapley(taken, worth), values)[0, 1])


@pytest.mark.parametrize(
    ("blocks", "passes", "stated"), [(8, 10, 0.993), (8, 100, 0.999), (8, 2000, 1.0), (2, 100, 0.95), (2, 2000, 0.997)]
)
def test_values_of_pairs_are_as_near_as_is_stated(blocks, passes, stated):
    """Of 8 players one at a time, or 4 at a time; the statement is of another game, so a third of its error is left."""
    found = np.mean([by_many_removals(10 * s, passes=passes, blocks=blocks) for s in range(1 if passes > 100 else 4)])
    assert 1 - found < max(1.35 * (1 - stated), 1e-3)


def test_doubles_are_rows_of_their_own():
    """Rows are known by ids: where all members of a cluster are one text, each is kept, and a value of 0 is a value."""
    seen = looking_at()
    same = dataclasses.replace(seen, values={BY: torch.eye(4).double()[torch.arange(20) % 4]})
    strategy = shed(same, ratio=1.0)
    assert sorted(strategy.decide(None, same).tolist()) == list(range(20))
    nothing = shed(same, utilities=[{"a": 5.0, "b": 7.0}] * 7, ratio=None, count=7)
    assert nothing.values(nothing.clustered(same)).tolist() == [0.0] * 4
    assert len(set(nothing.decide(None, same).tolist())) == 7
