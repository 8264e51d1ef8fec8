"""cluster-LESS (DataFlex): clusters and representatives against their definitions, influence of planted groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.measuring import Checkpoint, Sketch
from regimen.core.seeding import generator
from regimen.signals.clustered_influence import ClusteredInfluence
from regimen.signals.clustering import METHODS, STANDINGS, cluster, far_apart, representatives
from regimen.signals.influence import Influence
from tests.reference.test_near import built, chosen
from tests.support.vector_meter import VectorMeter, meter_of

ADAM = Sketch(adam="outside")


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def signal(**fields) -> ClusteredInfluence:
    return ClusteredInfluence(**{"sketch": ADAM, **fields})


def groups_of(label: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((label == k).nonzero()[:, 0].tolist()) for k in label.unique().tolist()}


def planted(sizes: list[int], *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors (n, 12) in tight groups, mixed, and the group (n,) of each."""
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    group = group[torch.randperm(len(group), generator=generator(seed))]
    centres = torch.linalg.qr(normal(12, 12, seed=seed))[0][: len(sizes)]
    return torch.nn.functional.normalize(centres[group] + 0.01 * normal(len(group), 12, seed=seed + 1)), group


@pytest.mark.parametrize("method", ["kmeans", "spherical", "kcenter"])
@pytest.mark.parametrize("seed", range(5))
def test_tight_groups_are_found(method, seed):
    points, group = planted([9, 4, 17, 1, 6], seed=seed)
    found = cluster(points, 5, method=method, rounds=20, generator=generator(seed))
    assert groups_of(found) == groups_of(group)


def test_rounds_end_in_a_fixed_point_that_no_centre_was_lost_for():
    """Each row is nearest to the mean of its group, and more rounds never raise the squared distances."""
    points = normal(60, 3, seed=1)
    before = torch.inf
    for rounds in (1, 2, 3, 50):
        label = cluster(points, 6, method="kmeans", rounds=rounds, generator=generator(2))
        means = torch.stack([points[label == k].mean(0) for k in range(int(label.max()) + 1)])
        inertia = float((points - means[label]).square().sum())
        assert inertia <= before
        before = inertia
    assert torch.equal(torch.cdist(points, means).argmin(1), label)
    sphere = torch.nn.functional.normalize(points)
    label = cluster(sphere, 6, method="spherical", rounds=50, generator=generator(2))
    sums = torch.stack([sphere[label == k].sum(0) for k in range(int(label.max()) + 1)])
    assert torch.equal((sphere @ torch.nn.functional.normalize(sums).T).argmax(1), label)


def test_k_center_takes_the_farthest_row_first():
    """On a line, from whichever row is drawn first."""
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [25.0]])
    for seed in range(6):
        first = int(torch.randint(6, (1,), generator=generator(seed)))
        centres, far = [first], (points - points[first]).abs()[:, 0]
        for _ in range(2):
            centres.append(int(far.argmax()))
            far = torch.minimum(far, (points - points[centres[-1]]).abs()[:, 0])
        label = cluster(points, 3, method="kcenter", rounds=1, generator=generator(seed))
        assert groups_of(label) == groups_of(torch.cdist(points, points[centres]).argmin(1))


def test_k_means_plus_plus_draws_by_squared_distance():
    """Points at 0, 1 and 3, two centres: the first is drawn uniformly, the second by its squared distance from it."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    drawn = Counter()
    for seed in range(1200):
        _, centres = far_apart(points, 2, farthest=False, generator=generator("plus", seed))
        drawn[tuple(centres)] += 1
    expected = {(0, 1): 1 / 10, (0, 2): 9 / 10, (1, 0): 1 / 5, (1, 2): 4 / 5, (2, 0): 9 / 13, (2, 1): 4 / 13}
    for pair, chance in expected.items():
        chance /= 3
        assert abs(drawn[pair] / 1200 - chance) < 5 * (chance * (1 - chance) / 1200) ** 0.5


def test_random_clusters_are_even():
    label = cluster(torch.zeros(23, 1), 5, method="random", rounds=1, generator=generator(3))
    assert sorted(torch.bincount(label).tolist()) == [4, 4, 5, 5, 5]
    assert not torch.equal(label, label.sort().values)


@pytest.mark.parametrize("method", ["kmeans", "spherical", "kcenter"])
def test_fewer_distinct_rows_than_clusters(method):
    distinct = torch.nn.functional.normalize(normal(3, 8, seed=4))
    points = distinct.repeat(5, 1)  # 15 rows
    label = cluster(points, 7, method=method, rounds=10, generator=generator(1))
    assert groups_of(label) == groups_of(torch.arange(15) % 3) and int(label.max()) == 2
    same = cluster(torch.ones(6, 2), 3, method=method, rounds=10, generator=generator(1))
    assert same.tolist() == [0] * 6


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from(METHODS), st.integers(0, 5))
def test_numbers_of_clusters_leave_none_out(n, groups, method, seed):
    points = torch.randint(3, (n, 2), generator=generator(seed)).float()
    label = cluster(points, groups, method=method, rounds=3, generator=generator(seed))
    assert label.shape == (n,) and label.unique().tolist() == list(range(int(label.max()) + 1))
    assert int(label.max()) < max(groups, 1) or n <= groups
    if groups >= n:
        assert label.tolist() == list(range(n))


@settings(max_examples=60)
@given(st.integers(1, 25), st.integers(1, 6), st.sampled_from(STANDINGS), st.integers(0, 5))
def test_representatives_of_each_cluster(n, count, standing, seed):
    points, draw = normal(n, 3, seed=seed), generator(seed)
    label = torch.unique(torch.randint(4, (n,), generator=draw), return_inverse=True)[1]
    found = representatives(points, label, count, standing=standing, generator=generator(seed)).tolist()
    assert found == sorted(found)
    for k in label.unique().tolist():
        members = (label == k).nonzero()[:, 0]
        mine = [i for i in found if label[i] == k]
        assert len(mine) == min(count, len(members))
        far = (points[members] - points[members].mean(0)).square().sum(1)
        by_distance = members[far.argsort(stable=True)].tolist()
        if standing == "nearest" and len(members) > 2:
            assert set(mine) == set(by_distance[:count])
        if standing == "farthest" and len(members) > 2:
            assert set(mine) == set(by_distance[-count:])
        if standing == "mixed" and count > 1 and len(members) > 2:
            assert {by_distance[0], by_distance[-1]} <= set(mine)


def test_ties_go_to_the_lower_row_and_draws_are_uniform():
    points, label = torch.zeros(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    assert representatives(points, label, 2, standing="nearest", generator=generator(0)).tolist() == [0, 1, 3, 4]
    hits = torch.zeros(6)
    for seed in range(900):
        hits[representatives(points, label, 1, standing="random", generator=generator(seed))] += 1
    assert bool(((hits - 300).abs() < 5 * (900 * 2 / 9) ** 0.5).all())


def random_meter(n: int = 40, *, seed: int = 0) -> VectorMeter:
    return meter_of(
        normal(n, 6, seed=seed),
        normal(n, 9, seed=seed + 1),
        target_states=normal(5, 6, seed=seed + 2),
        target_gradients=normal(5, 9, seed=seed + 3),
        subtasks=[2, 3],
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("val_agg", "contrast"), [("mean_of_cos", None), ("cos_of_mean", None), ("mean_of_cos", 12)])
def test_clusters_of_one_row_are_less(method, val_agg, contrast):
    """Exactly, and where embeddings are equal too."""
    meter = random_meter()
    meter.states_of[7] = meter.states_of[3]
    ids = torch.tensor([3, 7, 11, 30, 2])
    found = signal(method=method, cluster_size=1, val_agg=val_agg, contrast=contrast).measure(meter, ids)
    exact = Influence(sketch=ADAM, val_agg=val_agg, contrast=contrast).measure(meter, ids)
    assert found.dtype == torch.float32 and torch.allclose(found, exact, atol=1e-6, rtol=0)


def test_contrast_leaves_out_the_rows_that_stand_for_a_cluster():
    """The formula written out: of all rows, those that stand for a cluster do not count to what is taken off it."""
    meter = random_meter(31)
    one = signal(cluster_size=8, representatives=2, standing="nearest", contrast=31)
    plain = replace(one, contrast=None).measure(meter, torch.arange(31))
    points = torch.nn.functional.normalize(meter.states_of)
    draw = generator("clusters", 0, torch.arange(31).numpy().tobytes())
    label = cluster(points, 4, method=one.method, rounds=one.rounds, generator=draw)
    chosen = representatives(points, label, 2, standing="nearest", generator=draw)
    updates = torch.nn.functional.normalize(meter.sketches(torch.arange(31), one.sketch))
    gradients = torch.nn.functional.normalize(meter.sketches(torch.arange(31), replace(one.sketch, adam="none")))
    found = one.measure(meter, torch.arange(31))
    for row in range(31):
        mine = [c for c in chosen.tolist() if label[c] == label[row]]
        direction = torch.nn.functional.normalize(sum(updates[c] for c in mine), dim=0)
        rest = [k for k in range(31) if k not in mine]
        assert torch.allclose(found[row], plain[row] - (gradients[rest] @ direction).mean(), atol=1e-6)


def test_members_share_what_their_representatives_have():
    """The formula written out: mean of unit sketches, of length 1 again, times unit target gradients."""
    meter = random_meter(31)
    one = signal(cluster_size=8, representatives=2, standing="nearest")
    found = one.measure(meter, torch.arange(31))
    points = torch.nn.functional.normalize(meter.states_of)
    draw = generator("clusters", 0, torch.arange(31).numpy().tobytes())
    label = cluster(points, 4, method="kmeans", rounds=20, generator=draw)
    stand = representatives(points, label, 2, standing="nearest", generator=draw).tolist()
    wanted = torch.nn.functional.normalize(meter.target.gradients)
    for k in range(int(label.max()) + 1):
        gradients = torch.stack([meter.gradients[i] for i in stand if label[i] == k])
        gradients[:, 0] *= 2  # the stub's Adam
        feature = torch.nn.functional.normalize(gradients).mean(0)
        expected = (feature / feature.norm()) @ wanted.T
        assert torch.allclose(found[label == k], expected.expand(int((label == k).sum()), -1), atol=1e-6)
    measured = [ids for what, ids in meter.asked if what == "gradients outside"]
    assert measured == [stand]
    assert [what for what, _ in meter.target.asked] == ["gradients none"], "targets are plain gradients"


def test_a_row_without_a_gradient_is_nothing():
    meter = random_meter(6)
    meter.gradients[2] = 0
    found = signal(cluster_size=1).measure(meter, torch.arange(6))
    assert bool((found[2] == 0).all()) and bool(torch.isfinite(found).all())


def test_checkpoints_are_weighed():
    a, b = random_meter(20, seed=10), random_meter(20, seed=20)
    both = replace(a, others={"a": a, "b": b}, runs={"warmup": [Checkpoint("a", 0.7), Checkpoint("b", 0.3)]})
    found = signal(run="warmup", cluster_size=1).measure(both, torch.arange(20))
    parts = [signal(cluster_size=1).measure(meter, torch.arange(20)) for meter in (a, b)]
    assert torch.allclose(found, 0.7 * parts[0] + 0.3 * parts[1], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("standing", STANDINGS)
def test_the_order_in_which_rows_are_given_does_not_matter(method, standing):
    ids = torch.arange(5, 35)
    mixed = torch.randperm(30, generator=generator(5))
    one = signal(method=method, standing=standing, cluster_size=6)
    assert torch.equal(one.measure(random_meter(), ids)[mixed], one.measure(random_meter(), ids[mixed]))
    assert torch.equal(one.measure(random_meter(), ids), one.measure(random_meter(), ids))
    other = replace(one, seed=1).measure(random_meter(), ids)
    assert not torch.equal(other, one.measure(random_meter(), ids))


@pytest.mark.parametrize("method", ["kmeans", "spherical", "kcenter"])
def test_a_planted_group_is_kept_whole(method):
    """Each of four groups has a gradient of its own; the target's is that of group 2."""
    points, group = planted([10, 10, 10, 10], seed=7)
    gradients = torch.eye(4)[group] + 0.05 * normal(40, 4, seed=8)
    meter = meter_of(points, gradients, target_gradients=torch.eye(4)[[2, 2]])
    cluster_less = built("cluster_less")
    by = replace(cluster_less.by, method=method, cluster_size=10)
    assert sorted(chosen(replace(cluster_less, by=by), meter, 10)) == (group == 2).nonzero()[:, 0].tolist()
    assert sum(len(ids) for what, ids in meter.asked if "gradients" in what) == 12, "three of each group"


def test_what_it_costs_and_which_models_it_asks():
    one = signal()
    assert one.passes() == pytest.approx(1 + 3 * 3 / 64) and one.models() == (None,) and not one.by_row
    assert signal(cluster_size=2).passes() == 4, "no more than each row once"
    assert signal(run="outputs/warmup").models() == ("outputs/warmup", None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "lsh"}, "kmeans, spherical, kcenter, random"),
        ({"standing": "median"}, "random, nearest, farthest, mixed"),
        ({"cluster_size": 0}, "1 or more"),
        ({"representatives": 0}, "1 or more"),
        ({"rounds": 0}, "1 or more"),
        ({"val_agg": "sum"}, "mean_of_cos"),
    ],
)
def test_settings_that_cannot_work(fields, words):
    with pytest.raises(ConfigError, match=words):
        signal(**fields)


def test_it_needs_a_target_set():
    with pytest.raises(ConfigError, match="target set"):
        signal().measure(replace(random_meter(), targets=None), torch.arange(4))
