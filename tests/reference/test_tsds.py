"""TSDS (arXiv 2410.11303) through the selector: its linear programme, its limits, duplicates, scales, draws."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.core.strategy import Selection
from regimen.selection import tsds as module
from regimen.selection.transport import kernel_density
from regimen.selection.tsds import Tsds, crowds
from regimen.signals.embedding import Embedding
from tests.support.vector_meter import aiming, decided

BY = Embedding(normalise=False)


def selector(**fields) -> Tsds:
    return Tsds(by=BY, **fields)


def see(rows: torch.Tensor, target: torch.Tensor, **fields):
    return aiming(rows, by=BY, subtasks=[len(target)], target_values=target, **fields)


def instance(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (N, 3), a quarter of them twice, and target rows (M, 3)."""
    draw = np.random.default_rng(seed)
    n, m = int(draw.integers(40, 90)), int(draw.integers(1, 6))
    rows = torch.from_numpy(draw.normal(size=(n, 3)))
    rows[: n // 4] = rows[n // 2 : n // 2 + n // 4]
    return rows, torch.from_numpy(draw.normal(size=(m, 3)))


def programme(rows, target, density, alpha, scale, count) -> tuple[np.ndarray, float]:
    """Distances to all rows, and the optimum over g (M, N), 0 but at the `count` nearest, and t = max rho g."""
    far = np.linalg.norm(target.numpy()[:, None] - rows.numpy()[None], axis=2)  # (M, N)
    m, n = far.shape
    allowed = np.argsort(np.argsort(far, axis=1, kind="stable"), axis=1) < count
    cost = np.append(alpha / scale * far.ravel(), (1 - alpha) * m)
    equal = np.hstack([np.kron(np.eye(m), np.ones(n)), np.zeros((m, 1))])
    below = np.hstack([np.diag(np.tile(density, m)), -np.ones((m * n, 1))])
    bounds = [(0, None if ok else 0) for ok in allowed.ravel()] + [(0, None)]
    return far, float(linprog(cost, below, np.zeros(m * n), equal, np.full(m, 1 / m), bounds, method="highs").fun)


@pytest.mark.parametrize("seed", range(12))
def test_reaches_the_optimum_of_the_linear_programme(seed):
    """T1. The plan is rebuilt from the cap alone: each target row fills its nearest rows, in order."""
    rows, target = instance(seed)
    n, m, kde = len(rows), len(target), seed % 3 > 0
    alpha, scale = [0.05, 0.3, 0.5, 0.6, 0.9, 0.99][seed % 6], 5.0 if seed % 2 else 0.5
    chosen = selector(alpha=alpha, scale=scale, sigma=1.0, density="kde" if kde else "uniform")
    found = chosen.assign(rows, target)
    density = (kernel_density(rows, width=1.0) if kde else torch.ones(n)).double().numpy()
    far, optimum = programme(rows, target, density, alpha, scale, n // 10)
    total, highest, mass, filled = 0.0, 0.0, np.zeros(n), 0
    for row in far:
        left = 1 / m
        for i in np.argsort(row, kind="stable"):
            part = min(left, 1 / (m * found.cap * density[i]))
            if part > 1e-15:
                filled += 1
            left, total, highest = left - part, total + part * row[i], max(highest, density[i] * part)
            mass[i] += part
        assert left == pytest.approx(0, abs=1e-12), "T5: each target row gives 1 / M"
    assert alpha / scale * total + (1 - alpha) * m * highest == pytest.approx(optimum, abs=1e-12)
    assert found.probability.numpy() == pytest.approx(mass, abs=1e-12)
    assert float(found.probability.sum()) == pytest.approx(1, abs=1e-12)
    assert found.spread == pytest.approx(filled / m) and found.neighbours == n // 10


def test_all_on_distance_takes_the_nearest():
    """T2, through the draw: only the nearest rows of the target rows can be drawn."""
    rows, target = instance(3)
    near = torch.cdist(target, rows).argmin(1)
    count = len(set(near.tolist()))
    chosen = selector(alpha=1.0, density="uniform", ratio=None, count=count)
    assert set(decided(chosen, see(rows, target))) == set(near.tolist())
    with pytest.raises(ConfigError, match=f"{count} rows with a probability, {count + 1} to keep"):
        decided(selector(alpha=1.0, density="uniform", ratio=None, count=count + 1), see(rows, target))


def test_all_on_spread_takes_every_neighbour_alike():
    """T3, through draws with replacement: how often each row comes is a multinomial of its share."""
    rows, target = instance(4)
    n = len(rows)
    near = torch.cdist(target, rows).argsort(dim=1, stable=True)[:, : n // 10]
    expected = torch.bincount(near.reshape(-1), minlength=n).double() / near.numel()
    chosen = selector(alpha=0.0, density="uniform", draw="repeats", ratio=1.0)
    assert torch.allclose(chosen.assign(rows, target).probability, expected)
    hits, draws = torch.zeros(n, dtype=torch.float64), 400
    for seed in range(draws):
        found = chosen.decide(None, see(rows, target, seed=seed))
        assert isinstance(found, Selection) and int(found.repeats.sum()) == n
        hits[found.ids] += found.repeats
    spread = (draws * n * expected * (1 - expected)).sqrt()
    assert bool(((hits - draws * n * expected).abs() <= 5 * spread).all())
    assert bool((hits[expected == 0] == 0).all())


def test_distinct_draws_follow_the_probabilities():
    rows, target = instance(5)
    chosen = selector(alpha=0.6, scale=0.5, ratio=None, count=1)
    expected = chosen.assign(rows, target).probability
    draws = 500
    hits = torch.zeros(len(rows), dtype=torch.float64)
    for seed in range(draws):
        hits[decided(chosen, see(rows, target, seed=seed))] += 1
    assert bool(((hits / draws - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt() + 1e-12).all())


def test_duplicates_share_the_mass_of_one():
    """T4: with densities a group of ten has what one row had, up to 1 / s; without, ten neighbours of many more."""
    rows = torch.randn(200, 3, generator=generator(5), dtype=torch.float64) * 10
    target = rows[:3] + 0.1
    many = torch.cat([rows, rows[:1].repeat(9, 1)])
    group = [0, *range(200, 209)]
    kde = selector(alpha=0.5, sigma=0.5, neighbours=20)
    alone, crowd = kde.assign(rows, target), kde.assign(many, target)
    assert float(crowd.probability[group].sum()) == pytest.approx(float(alone.probability[0]), abs=1 / crowd.cap)
    uniform = selector(alpha=0.0, density="uniform", neighbours=20)
    alone, crowd = uniform.assign(rows, target), uniform.assign(many, target)
    assert float(crowd.probability[group].sum() / alone.probability[0]) == pytest.approx(10)


def test_scaling_everything_changes_nothing():
    """T6."""
    rows, target = instance(8)
    plain = selector(alpha=0.6, sigma=1.0, scale=2.0).assign(rows, target)
    large = selector(alpha=0.6, sigma=4.0, scale=8.0).assign(4 * rows, 4 * target)
    assert torch.allclose(plain.probability, large.probability, atol=1e-12) and plain.cap == pytest.approx(large.cap)


def test_centred_vectors_are_unit_vectors_around_the_mean_of_the_rows():
    rows, target = instance(3)
    far = 20 * torch.ones(rows.shape[1], dtype=rows.dtype)
    mean = rows.mean(0)
    around, wanted = ((x - mean) / (x - mean).norm(dim=1, keepdim=True) for x in (rows, target))
    plain = selector(scale=1.0).assign(around, wanted)
    found = selector(scale=1.0, centre=True).assign(rows + far, target + far)
    assert torch.allclose(found.probability, plain.probability, atol=1e-9)
    assert found.cap == pytest.approx(plain.cap)


def test_cosine_is_half_the_squared_distance_of_unit_vectors():
    rows, target = instance(9)
    units, wanted = (torch.nn.functional.normalize(t, dim=1) for t in (rows, target))
    chosen = selector(metric="cosine", alpha=0.3, scale=0.1, sigma=0.5)
    found = chosen.assign(rows, target)
    far = 1 - wanted @ units.T
    density = kernel_density(units, width=0.5)
    m, left = len(target), torch.zeros(len(rows), dtype=torch.float64)
    for row in far:
        rest = 1 / m
        for i in row.argsort(stable=True).tolist():
            part = min(rest, 1 / (m * found.cap * float(density[i])))
            rest, left[i] = rest - part, left[i] + part
    assert torch.allclose(found.probability, left, atol=1e-12)
    assert torch.allclose(chosen.assign(3 * rows, 7 * target).probability, left, atol=1e-12), "lengths do not count"


def test_in_a_large_pool_the_neighbours_alone_are_counted(monkeypatch):
    rows, target = instance(10)
    chosen = selector(alpha=0.2, scale=0.5, sigma=1.5)
    near = torch.cdist(target, rows).argsort(dim=1, stable=True)[:, : len(rows) // 10]
    used = near.unique()
    monkeypatch.setattr(module, "_ALL", 10)
    expected = torch.ones(len(rows), dtype=torch.float64)
    expected[used] = kernel_density(rows[used], width=1.5)
    assert torch.allclose(chosen.densities(rows, near), expected)
    far = torch.cdist(rows[used], rows[used]).sort(1).values[:, :3]
    few = selector(sigma=1.5, density_neighbours=3).densities(rows, near)[used]
    assert torch.allclose(few, (1 - (far / 1.5) ** 2).clamp(min=0).sum(1))
    one = selector(alpha=0.2, scale=0.5, sigma=1.5, density_neighbours=1)
    uniform = selector(alpha=0.2, scale=0.5, density="uniform")
    assert torch.allclose(one.assign(rows, target).probability, uniform.assign(rows, target).probability)


def test_faiss_counts_the_same_neighbours(monkeypatch):
    pytest.importorskip("faiss", reason="pip install 'regimen[neighbours]'")
    monkeypatch.setattr(module, "_ALL", 10)
    rows, target = instance(10)
    fields = {"alpha": 0.2, "scale": 0.5, "sigma": 1.5, "density_neighbours": 3}
    found, exact = (selector(search=search, **fields).assign(rows, target) for search in ("faiss", "exact"))
    assert torch.allclose(found.probability, exact.probability, atol=1e-5)


def test_crowds_are_kernel_densities(monkeypatch):
    rows, _ = instance(2)
    expected = kernel_density(rows, width=1.2)
    assert torch.allclose(crowds(rows, len(rows), width=1.2), expected, atol=1e-12)
    monkeypatch.setattr(module, "_PAIRS", 3 * len(rows))  # three rows at once
    assert torch.allclose(crowds(rows, len(rows), width=1.2), expected, atol=1e-12)


def test_neighbours_are_a_tenth_of_the_rows_and_at_least_one():
    rows, target = instance(11)
    assert selector().assign(rows[:9], target).neighbours == 1
    assert selector().assign(rows[:39], target).neighbours == 3
    assert selector(neighbours=2).assign(rows[:39], target).neighbours == 2


@pytest.mark.parametrize("draw", ["distinct", "repeats"])
def test_the_order_in_which_rows_are_given_does_not_matter(draw):
    rows, target = instance(6)
    ids = torch.arange(len(rows)) * 2 + 1
    mixed = torch.randperm(len(rows), generator=generator(1))
    chosen = selector(alpha=0.2, draw=draw, ratio=None, count=4)
    plain = decided(chosen, see(rows, target, ids=ids))
    assert decided(chosen, see(rows[mixed], target, ids=ids[mixed])) == plain
    assert len(plain) == 4 or draw == "repeats"


def test_a_share_of_the_tokens():
    rows, target = instance(7)
    tokens = [1 + i % 7 for i in range(len(rows))]
    chosen = selector(alpha=0.0, ratio=None, token_ratio=0.1)
    found = decided(chosen, see(rows, target, tokens=tokens))
    assert abs(sum(tokens[i] for i in found) - 0.1 * sum(tokens)) <= max(tokens) / 2
    with pytest.raises(ConfigError, match="give more target rows"):
        decided(selector(alpha=0.0, ratio=None, token_ratio=1.0), see(rows, target, tokens=tokens))


TOLD = {0.5: r"^a target row gives to \d\.\d rows on average, of 7 neighbours$", 1.0: "lower alpha", 0.0: "raise alpha"}


@pytest.mark.parametrize(("alpha", "words"), TOLD.items())
def test_the_user_is_told_how_far_target_rows_reach(alpha, words):
    rows = torch.randn(70, 3, generator=generator(1), dtype=torch.float64)
    seen = see(rows, torch.randn(3, 3, generator=generator(2), dtype=torch.float64))
    chosen = selector(alpha=alpha, scale=1.0, density="uniform", ratio=None, count=2)
    found = chosen.checked(chosen.decide(None, seen), seen)
    sent = pickle.loads(pickle.dumps(found))  # as rank 0 does
    (note,) = chosen.notes(None, sent, seen)
    assert torch.equal(sent.ids, found.ids) and re.search(words, note)


def test_what_it_needs():
    chosen = selector()
    assert chosen.needs() == chosen.needs_of_target() == (BY,)
    rows, target = instance(1)
    with pytest.raises(ConfigError, match="dataset.target.path=FILE or dataset.target.from"):
        decided(chosen, aiming(rows, by=BY, subtasks=None, target_values=target))
    with pytest.raises(ConfigError, match="finite vector"):
        decided(chosen, see(rows[:, 0], target))
    rows[1, 1] = torch.nan
    with pytest.raises(ConfigError, match="finite vector"):
        decided(chosen, see(rows, target))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "manhattan"}, "euclidean, cosine"),
        ({"density": "none"}, "kde, uniform"),
        ({"draw": "twice"}, "distinct, repeats"),
        ({"search": "fast"}, "auto, exact, faiss"),
        ({"alpha": 1.1}, "0 to 1"),
        ({"alpha": float("nan")}, "0 to 1"),
        ({"scale": 0.0}, "distances"),
        ({"sigma": -1.0}, "distances"),
        ({"neighbours": 0}, "counts"),
        ({"density_neighbours": 0}, "counts"),
        ({"draw": "repeats", "ratio": None, "token_ratio": 0.5}, "give ratio or count"),
        ({"ratio": 2.0}, "ratio"),
    ],
)
def test_settings_that_cannot_work(fields, words):
    with pytest.raises(ConfigError, match=words):
        selector(**fields)


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_pools_of_a_few_rows(rows):
    """Where a tenth of the rows is none, and an inverted file would have no list."""
    points, target = torch.randn(rows, 3, generator=generator(1)), torch.randn(2, 3, generator=generator(2))
    near = set(torch.cdist(target, points).argmin(1).tolist())
    for density in ("kde", "uniform"):
        chosen = selector(density=density, ratio=None, count=len(near))
        assert set(decided(chosen, see(points, target))) == near
        assert float(chosen.assign(points, target).probability.sum()) == pytest.approx(1, abs=1e-12)


def test_near_the_limits_of_alpha():
    """Next to 1 nearly all mass is on the nearest rows, next to 0 it is spread evenly: no jump at either end."""
    rows, target = instance(4)
    rows = rows[len(rows) // 4 :]  # without doubles, between which mass may lie anyhow
    for density in ("kde", "uniform"):
        for end, inside in ((1.0, 1 - 1e-9), (0.0, 1e-9)):
            at, near = (selector(alpha=a, density=density).assign(rows, target) for a in (end, inside))
            assert torch.allclose(at.probability, near.probability, atol=1e-6)
    nearest = torch.bincount(torch.cdist(target, rows).argmin(1), minlength=len(rows)).double() / len(target)
    assert torch.allclose(selector(alpha=1 - 1e-9, density="uniform").assign(rows, target).probability, nearest)
    spread = [selector(alpha=a, density="uniform", scale=1.0).assign(rows, target).spread for a in (0.1, 0.5, 0.9, 1)]
    assert spread == sorted(spread, reverse=True) and spread[-1] == 1


def test_a_count_beyond_the_pool_is_refused_before_anything_is_measured():
    rows, target = instance(4)
    seen = see(rows, target)
    with pytest.raises(ConfigError, match=f"1 to {len(rows)}"):
        selector(ratio=None, count=len(rows) + 1).init(seen.index)
    with pytest.raises(ConfigError, match="1 to 10"):
        selector(ratio=None, count=11, candidates=10).init(seen.index)


@pytest.mark.parametrize(
    ("fields", "helps", "does_not"),
    [
        ({"alpha": 0.0, "neighbours": 2}, "raise neighbours", "lower alpha"),  # all neighbours are given to
        ({"alpha": 1.0}, "lower alpha", "raise neighbours"),  # a tenth of the rows is the most
        ({"alpha": 0.0}, "give more target rows", "raise neighbours"),
    ],
)
def test_what_is_advised_when_too_few_rows_can_be_drawn_can_be_done(fields, helps, does_not):
    rows = torch.randn(70, 3, generator=generator(1), dtype=torch.float64)
    target = torch.randn(2, 3, generator=generator(2), dtype=torch.float64)
    chosen = selector(density="uniform", ratio=None, count=40, **fields)
    with pytest.raises(ConfigError, match="draw=repeats") as error:
        decided(chosen, see(rows, target))
    assert helps in str(error.value) and does_not not in str(error.value)
