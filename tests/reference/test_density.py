"""Density sampling (arXiv 2402.09668): the kernel, the sketch against the exact sum, and 1 / S against duplicates."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.selection.density import Density, collision, kernel_sums, sketched_sums
from regimen.selection.rules import inverse_propensity
from regimen.signals.embedding import Embedding
from regimen.signals.ngrams import NgramFeatures
from tests.reference.observations import LOSS, seeing
from tests.reference.texts import Texts, real

FEATURES = NgramFeatures()


def points(n: int, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def normal_cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def test_the_kernel_is_the_closed_form_and_the_frequency_of_collisions():
    w = 1.5
    for t in (0.05, 0.7, 1.5, 6.0):
        outer = 2 * t / (math.sqrt(2 * math.pi) * w) * (1 - math.exp(-(w**2) / (2 * t**2)))
        expected = 1 - 2 * normal_cdf(-w / t) - outer
        found = float(collision(torch.tensor(t, dtype=torch.float64), bandwidth=w))
        assert found == pytest.approx(expected, abs=1e-12)
        draw, trials = np.random.default_rng(1), 200_000
        shift = draw.uniform(size=trials)
        collides = np.floor(shift) == np.floor(draw.normal(size=trials) * t / w + shift)
        assert collides.mean() == pytest.approx(expected, abs=5 * (expected * (1 - expected) / trials) ** 0.5)
    assert float(collision(torch.zeros(1), bandwidth=w)) == 1


def test_exact_sums_equal_a_double_loop():
    rows = points(30)
    rows[20] = rows[3]
    expected = [
        sum(float(collision(torch.linalg.norm(x - y), bandwidth=2.0)) for y in rows.unbind()) for x in rows.unbind()
    ]
    assert kernel_sums(rows, bandwidth=2.0).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("power", [1, 3])
def test_the_sketch_estimates_the_exact_sum(power):
    """With this size a mean relative error of .6%, at most 3.5%, and a correlation of .9999 were seen elsewhere."""
    rows = points(400, 4)
    exact = kernel_sums(rows, bandwidth=2.0, power=power)
    found = sketched_sums(rows, bandwidth=2.0, power=power, hashes=4000, buckets=20_000, generator=generator(1))
    error = ((found - exact) / exact).abs()
    assert float(error.mean()) < 0.02 and float(error.max()) < 0.08
    assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.999
    assert float(found.min()) >= 1, "a row counts itself"


def test_the_sketch_adds_over_rows_in_any_order():
    rows = points(50)
    settings = {"bandwidth": 1.0, "hashes": 70, "buckets": 500}
    whole = sketched_sums(rows, **settings, generator=generator(2))
    mixed = torch.randperm(50, generator=generator(3))
    assert torch.equal(sketched_sums(rows[mixed], **settings, generator=generator(2)), whole[mixed])
    one = sketched_sums(rows, **settings, power=3, generator=generator(2))
    other = sketched_sums(rows[mixed], **settings, power=3, generator=generator(2))
    assert torch.equal(other, one[mixed])
    few = sketched_sums(rows, **settings | {"buckets": 1}, generator=generator(2))
    assert few.tolist() == [50.0] * 50, "one counter holds every row"


@pytest.mark.parametrize("kernel", ["exact", "sketch"])
def test_a_row_that_is_there_m_times_is_drawn_a_mth_as_often(kernel):
    """Half of the rows are one cluster of duplicates; the printed formula, S / sum S, would favour them."""
    far = 50 * torch.eye(20, dtype=torch.float64)
    rows = torch.cat([far, far[:1].repeat(19, 1), far[1:2]])  # row 0 is there 20 times, row 1 twice
    copies = torch.tensor([20.0, 2.0, *[1.0] * 18, *[20.0] * 19, 2.0])
    found = sums = kernel_sums(rows, bandwidth=0.1)
    if kernel == "sketch":
        sums = sketched_sums(rows, bandwidth=0.1, hashes=500, buckets=20_000, generator=generator(4))
        assert torch.allclose(sums, found, atol=0.15)  # one collision with the cluster adds 20 / 500
    assert torch.allclose(found, copies.double(), atol=0.05)
    expected = (1 / sums) / (1 / sums).sum()
    meter = Texts([str(i) for i in range(40)])
    selector = Density(by=FEATURES, bandwidth=0.1, kernel=kernel, hashes=100, ratio=None, count=1)
    drawn = torch.zeros(40, dtype=torch.float64)
    draws = 300
    seen = dataclasses.replace(meter.seen(FEATURES), values={FEATURES: rows})
    for seed in range(draws):
        drawn[selector.decide(None, dataclasses.replace(seen, generator=generator(seed)))] += 1
    cluster, ideal = float(drawn[copies == 20].sum()) / draws, float(expected[copies == 20].sum())
    assert cluster == pytest.approx(1 / 20, abs=0.05) and ideal == pytest.approx(1 / 20, abs=0.01)


def test_features_keep_the_cosine_of_ngram_counts():
    """Signed hashing is unbiased: over 40 pairs the error of the cosine is near 1 / sqrt(d)."""
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in draw.integers(0, 60, 80)) for _ in range(80)]
    found = NgramFeatures(dimensions=1024, n=1).measure(Texts(texts), torch.arange(80))
    vocabulary = {f"w{i}": i for i in range(60)}
    exact = torch.zeros(80, 60, dtype=torch.float64)
    for row, text in zip(exact, texts, strict=True):
        for word in text.split():
            row[vocabulary[word]] += 1
        row[row > 0] = 1 + row[row > 0].log()
    exact = exact / exact.norm(dim=1, keepdim=True)
    assert torch.allclose(found.norm(dim=1), torch.ones(80, dtype=torch.float64))
    error = (found[::2] * found[1::2]).sum(1) - (exact[::2] * exact[1::2]).sum(1)
    assert float(error.square().mean().sqrt()) < 3 / 32
    assert NgramFeatures().measure(Texts([""]), torch.arange(1)).abs().sum() == 0


def test_the_same_text_has_the_same_vector_whatever_it_is_measured_with():
    meter = Texts(["one two", "three", "One  two"])
    whole = FEATURES.measure(meter, torch.arange(3))
    assert torch.equal(whole[0], whole[2])
    assert torch.equal(FEATURES.measure(meter, torch.tensor([2])), whole[2:])


def test_real_boilerplate_is_thinned_out(shared):
    """A quarter of the rows are near copies of one document: of a half that is kept, they are a smaller part."""
    texts = real(shared, "wikipedia", count=150)
    copies = [f"{texts[0]} {i}" for i in range(50)]
    seen = Texts(texts + copies).seen(FEATURES)
    copies = []
    for power in (1, 4):
        kept = Density(by=FEATURES, power=power).decide(None, seen)
        assert len(kept) == 100
        copies.append(int((kept >= 150).sum()))
    assert copies[0] < 20 and copies[1] < 8, copies


def test_refused():
    for settings, words in (
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"kernel": "fast"}, "auto, exact, sketch"),
        ({"hashes": 0}, "sketch"),
        ({"power": 0}, "power"),
    ):
        with pytest.raises(ConfigError, match=words):
            Density(by=FEATURES, **settings)
    with pytest.raises(ConfigError, match="dimensions"):
        NgramFeatures(dimensions=1)
    with pytest.raises(ConfigError, match="vector per row"):
        Density(by=LOSS).decide(None, seeing([1.0, 2.0]))


def sketch_of(rows: torch.Tensor, bandwidth: float, seed: int) -> torch.Tensor:
    return sketched_sums(rows, bandwidth=bandwidth, hashes=4000, buckets=20_000, generator=generator(seed))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def test_the_sketch_is_as_near_as_is_stated():
    """R = 4000, B = 20,000 and 400 rows: a mean relative error of .6%, at most 3.5%, and a correlation of .9999."""
    means = []
    for seed in range(4):
        rows = points(400, seed=seed)
        rows[:200] = rows[0] + rows[:200]
        exact = kernel_sums(rows, bandwidth=4.0)
        error = ((sketch_of(rows, 4.0, 1 + seed) - exact) / exact).abs()
        means.append(float(error.mean()))
        assert float(error.max()) < 0.035
    assert sum(means) / 4 < 0.006
    rows[:200] = rows[0] + 0.1 * rows[:200]  # crowded and empty regions, whose sums differ
    assert correlation(sketch_of(rows, 2.0, 4), kernel_sums(rows, bandwidth=2.0)) > 0.9998


def test_counters_of_shards_add():
    """What a row counts among all is what it counts in its own shard and in the other, itself counted once."""
    rows = points(60)
    settings = {"bandwidth": 1.0, "hashes": 90, "buckets": 700}

    def counted(part: torch.Tensor) -> torch.Tensor:
        return sketched_sums(part, **settings, generator=generator(2))

    whole, own = counted(rows), counted(rows[:25])
    for i in (0, 7, 24):
        other = counted(torch.cat([rows[25:], rows[i : i + 1]]))[-1]
        assert float(whole[i]) == pytest.approx(float(own[i] + other) - 1, abs=1e-12)


def test_a_cluster_of_half_the_rows_is_drawn_less_and_the_printed_formula_draws_it_more():
    """Chances of the first draw are those of 1 / S, and of one row of a cluster of m those of another divided by m."""
    rows = torch.cat([20 * torch.eye(10, dtype=torch.float64), torch.full((10, 10), -20.0, dtype=torch.float64)])
    sums = kernel_sums(rows, bandwidth=30.0)
    share = {name: float(w[10:].sum() / w.sum()) for name, w in (("inverse", 1 / sums), ("printed", sums))}
    assert share["inverse"] == pytest.approx(1 - share["printed"], abs=0.02)
    assert share["inverse"] < 0.45 and share["printed"] > 0.55
    apart = kernel_sums(rows, bandwidth=0.01)
    assert (apart[:10] / apart[10:]).tolist() == pytest.approx([1 / 10] * 10, rel=5e-3)
    for density in (sums, apart):
        expected, draws = (1 / density)[10:].sum() / (1 / density).sum(), 3000
        hits = sum(int(inverse_propensity(density, 1, generator=generator(s))) >= 10 for s in range(draws))
        assert hits / draws == pytest.approx(float(expected), abs=5 * float(expected * (1 - expected) / draws) ** 0.5)


@pytest.mark.parametrize("kernel", ["exact", "sketch"])
def test_vectors_in_single_precision(kernel):
    """As signals of hidden states give them; far from the origin, a row is still one with itself."""
    by, rows = Embedding(), points(40) + 100
    found = []
    for values in (rows.float(), rows.float().double()):
        seen = dataclasses.replace(seeing(torch.zeros(40), by=by, seed=3), values={by: values})
        selector = Density(by=by, kernel=kernel, hashes=50, ratio=None, count=12)
        found.append(selector.decide(None, seen).tolist())
    assert found[0] == found[1] or kernel == "sketch"
    assert len(set(found[0])) == 12
