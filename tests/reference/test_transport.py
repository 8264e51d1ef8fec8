"""TSDS against its linear programme and its limits; unbalanced transport against its optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from regimen.core.seeding import generator
from regimen.selection.transport import kernel_density, tsds, unbalanced_transport


def nearest(queries: torch.Tensor, points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (M, k) and their distances (M, k), nearest first."""
    distance = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.argsort(dim=1, stable=True)[:, :k]
    return order, distance.gather(1, order)


def instance(seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Queries (M, 3), candidates (N, 3), some of them twice, and a number of neighbours."""
    draw = np.random.default_rng(seed)
    n, m = int(draw.integers(8, 31)), int(draw.integers(1, 5))
    points = torch.from_numpy(draw.normal(size=(n, 3)))
    points[: n // 4] = points[n // 2 : n // 2 + n // 4]
    return torch.from_numpy(draw.normal(size=(m, 3))), points, int(draw.integers(2, n + 1))


def programme(neighbours, distances, density, alpha, scale) -> float:
    """Optimum of the linear programme over g (M, R) and t = max rho g."""
    m, r = neighbours.shape
    cost = np.append(alpha / scale * distances.numpy().ravel(), (1 - alpha) * m)
    rows = np.kron(np.eye(m), np.ones(r))
    equal = np.hstack([rows, np.zeros((m, 1))])
    below = np.hstack([np.diag(density[neighbours].numpy().ravel()), -np.ones((m * r, 1))])
    found = linprog(cost, below, np.zeros(m * r), equal, np.full(m, 1 / m), method="highs")
    return float(found.fun)


def reached(neighbours, distances, density, alpha, scale) -> float:
    """The objective of the plan that the assignment stands for, rebuilt query by query from its cap."""
    found = tsds(neighbours, distances, density, alpha=alpha, scale=scale)
    m, cap = len(neighbours), 1 / found.neighbourhood
    total, probability, highest = 0.0, torch.zeros(len(density), dtype=torch.float64), 0.0
    for row, far in zip(neighbours.tolist(), distances.tolist(), strict=True):
        left = 1 / m
        for i, d in zip(row, far, strict=True):
            mass = min(left, cap / (m * float(density[i])))
            left -= mass
            total, highest = total + mass * d, max(highest, float(density[i]) * mass)
            probability[i] += mass
        assert left == pytest.approx(0, abs=1e-12), "row marginals are 1 / M"
    assert torch.allclose(probability, found.probability, atol=1e-12)
    assert float(found.probability.sum()) == pytest.approx(1, abs=1e-12)
    return alpha / scale * total + (1 - alpha) * m * highest


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_linear_programme(seed):
    queries, points, k = instance(seed)
    alpha = [0.05, 0.3, 0.5, 0.6, 0.9, 0.99][seed % 6]
    density = kernel_density(points, width=1.0) if seed % 3 else torch.ones(len(points), dtype=torch.float64)
    problem = (*nearest(queries, points, k), density, alpha, 5.0 if seed % 2 else 0.5)
    assert reached(*problem) == pytest.approx(programme(*problem), abs=1e-12)


def test_all_on_distance_takes_the_nearest_and_all_on_spread_takes_every_neighbour():
    queries, points, _ = instance(3)
    neighbours, distances = nearest(queries, points, 6)
    even = torch.ones(len(points), dtype=torch.float64)
    only = tsds(neighbours, distances, even, alpha=1.0, scale=5.0).probability
    expected = torch.zeros_like(only).index_add_(
        0, neighbours[:, 0], torch.full((len(queries),), 1 / len(queries)).double()
    )
    assert torch.allclose(only, expected)
    spread = tsds(neighbours, distances, even, alpha=0.0, scale=5.0)
    expected = torch.bincount(neighbours.reshape(-1), minlength=len(points)).double() / neighbours.numel()
    assert torch.allclose(spread.probability, expected) and spread.neighbourhood == pytest.approx(6)


def test_duplicates_share_the_mass_of_one():
    points = torch.randn(40, 3, generator=generator(5), dtype=torch.float64) * 10
    queries = points[:3] + 0.1
    many = torch.cat([points, points[:1].repeat(9, 1)])  # row 0 is there ten times
    group = [0, *range(40, 49)]
    settings = {"alpha": 0.5, "scale": 5.0}
    alone = tsds(*nearest(queries, points, 40), kernel_density(points, width=0.5), **settings)
    mass = float(alone.probability[0])
    weighed = tsds(*nearest(queries, many, 49), kernel_density(many, width=0.5), **settings)
    assert float(weighed.probability[group].sum()) == pytest.approx(mass, abs=1 / weighed.neighbourhood)
    assert weighed.neighbourhood == pytest.approx(alone.neighbourhood, rel=1e-9)
    spread = {"alpha": 0.0, "scale": 5.0}
    plain = tsds(*nearest(queries, points, 40), torch.ones(40), **spread).probability[0]
    doubled = tsds(*nearest(queries, many, 49), torch.ones(49), **spread).probability[group].sum()
    assert float(doubled / plain) == pytest.approx(10 * 40 / 49)  # ten of 49, not one of 40


def test_scaling_everything_changes_nothing():
    queries, points, k = instance(8)
    plans = [
        tsds(*nearest(c * queries, c * points, k), kernel_density(c * points, width=c), alpha=0.6, scale=5.0 * c)
        for c in (1.0, 4.0)
    ]
    assert torch.allclose(plans[0].probability, plans[1].probability, atol=1e-12)


def test_kernel_density_counts_a_tight_group():
    points = torch.tensor([[0.0, 0.0]] * 3 + [[9.0, 0.0], [9.3, 0.4]], dtype=torch.float64)  # the last two 0.5 apart
    expected = torch.tensor([3.0, 3.0, 3.0, 1.75, 1.75], dtype=torch.float64)
    assert torch.allclose(kernel_density(points, width=1.0), expected)


def test_transport_meets_its_optimality_conditions():
    """d/dP: C + epsilon log(P N M) + penalty log(row sum * N) is one number per query, and columns sum to 1 / M."""
    cost = torch.rand(12, 4, generator=generator(2), dtype=torch.float64)
    for epsilon, penalty in ((0.1, 0.05), (0.05, 1e-4), (0.1, 10.0)):
        mass = unbalanced_transport(cost, epsilon=epsilon, penalty=penalty, rounds=200_000)
        potential = -penalty * (12 * mass).log()  # (N,) of the candidates at the optimum
        plan = ((potential[:, None] - cost) / epsilon).softmax(dim=0) / 4
        assert torch.allclose(plan.sum(1), mass, atol=1e-9)
        assert float(mass.sum()) == pytest.approx(1)


def test_transport_equals_a_general_minimiser():
    cost = torch.rand(4, 2, generator=generator(3), dtype=torch.float64).numpy()
    epsilon, penalty = 0.2, 0.3

    def plan(x):
        p = np.exp(x.reshape(4, 2))
        return p / p.sum(0) / 2

    def objective(x):
        p = plan(x)
        rows = p.sum(1)
        return (p * cost).sum() + epsilon * (p * np.log(p * 8)).sum() + penalty * (rows * np.log(rows * 4)).sum()

    best = minimize(objective, np.zeros(8), tol=1e-14)
    found = unbalanced_transport(torch.from_numpy(cost), epsilon=epsilon, penalty=penalty)
    assert found.numpy() == pytest.approx(plan(best.x).sum(1), abs=1e-5)


def test_transport_limits():
    cost = torch.rand(6, 3, generator=generator(4), dtype=torch.float64)
    assert torch.allclose(unbalanced_transport(torch.zeros(6, 3)), torch.full((6,), 1 / 6, dtype=torch.float64))
    closest = torch.bincount(cost.argmin(0), minlength=6).double() / 3
    assert torch.allclose(unbalanced_transport(cost, epsilon=1e-3, penalty=1e-9), closest, atol=1e-3)
