"""ADAPT (arXiv 2605.05227): mean cosines by hand and as one vector, renewal, centring, and BM25 by its formula."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.strategy import Observation, WeighedBatch
from regimen.signals.bm25 import Bm25
from regimen.signals.embedding import Embedding
from regimen.weighting.adapt import Adapt
from tests.reference.observations import observing, weighing
from tests.reference.texts import Texts

BY = Embedding(pooling="position_weighted", normalise=False)


def batch_of(rows: Tensor, target: Tensor | None) -> WeighedBatch:
    batch = weighing([0] * len(rows), values={BY: rows})
    return dataclasses.replace(batch, target_values={} if target is None else {BY: target})


def after(weighter: Adapt, state: object, batch: WeighedBatch) -> object:
    seen: Observation = dataclasses.replace(observing(batch), target_values=batch.target_values)
    return weighter.observe(state, seen)  # type: ignore[arg-type]


def weights_of(weighter: Adapt, rows: Tensor, target: Tensor) -> Tensor:
    losses = torch.ones(len(rows), dtype=torch.float64)
    batch = batch_of(rows, target)
    return weighter.checked(weighter.weigh(weighter.init(batch.index), losses, batch), losses)


def vectors(n: int, d: int = 12, *, shift: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_one_vector_is_the_mean_of_cosines(tau: float) -> None:
    rows, target = vectors(9), vectors(5, seed=1)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], target[None], dim=2)  # (B, M)
    expected = torch.sigmoid(cosines.mean(1) / tau)
    assert weights_of(Adapt(by=BY, tau=tau), rows, target).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_with_tau_one_weights_are_confined() -> None:
    target = vectors(1)
    weights = weights_of(Adapt(by=BY), torch.cat([3 * target, -target, torch.zeros(1, 12)]), target)
    assert weights.tolist() == pytest.approx([0.731059, 0.268941, 0.5], abs=1e-6)


def test_states_that_all_point_the_same_way_need_centring() -> None:
    """Both kinds of rows share a large component; only the target's kind has the small one."""
    kind = torch.zeros(12)
    kind[3] = 2.0
    rows, target = vectors(40, shift=20) + torch.cat([kind.expand(20, 12), -kind.expand(20, 12)]), None
    target = vectors(30, shift=20, seed=2) + kind

    def spread(weights: Tensor) -> float:
        return float(weights.std(correction=0) / weights.mean())

    raw, centred = (weights_of(Adapt(by=BY, centred=centred), rows, target) for centred in (False, True))
    assert spread(raw) < 2e-3 and spread(centred) > 20 * spread(raw)
    assert float(centred[:20].mean()) > 0.55 > 0.45 > float(centred[20:].mean())
    assert spread(weights_of(Adapt(by=BY, tau=0.1, centred=True), rows, target)) > 2 * spread(centred)


def test_the_target_is_renewed_every_so_many_steps() -> None:
    weighter = Adapt(by=BY, every=3, centred=True)
    assert [step for step in range(8) if weighter.renews_target(step)] == [0, 3, 6]
    first, later, target = vectors(6), vectors(6, seed=3), vectors(4, seed=1)
    losses = torch.ones(6, dtype=torch.float64)
    state = after(weighter, weighter.init(batch_of(first, None).index), batch_of(first, target))
    kept = batch_of(later, None)
    centre = first.double().mean(0)
    cosines = torch.nn.functional.cosine_similarity((later - centre)[:, None], (target - centre)[None], dim=2)
    weights = weighter.weigh(state, losses, kept)  # type: ignore[arg-type]
    assert weights.tolist() == pytest.approx(cosines.mean(1).sigmoid().tolist(), abs=1e-9)
    assert after(weighter, state, kept) is state
    renewed = weighter.weigh(state, losses, batch_of(later, vectors(4, seed=8)))  # type: ignore[arg-type]
    assert float((renewed - weights).abs().max()) > 1e-3


class Aimed(Texts):
    """Rows, and a target set of others."""

    def __init__(self, rows: list[str], target: list[str]) -> None:
        super().__init__(rows)
        self.target = Texts(target)


def bm25(x: str, v: str, rows: list[str], k1: float, b: float) -> float:
    mean, counts, total = sum(len(row.split()) for row in rows) / len(rows), Counter(x.split()), 0.0
    for word in (word for word in v.split() if counts[word]):
        df = sum(word in row.split() for row in rows)
        idf = math.log(1 + (len(rows) - df + 0.5) / (df + 0.5))
        total += idf * counts[word] * (k1 + 1) / (counts[word] + k1 * (1 - b + b * len(x.split()) / mean))
    return total


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.0, 0.5), (2.0, 0.0), (1.2, 1.0)])
def test_bm25_is_its_formula_and_becomes_weights(k1: float, b: float) -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(12)]
    rows = [" ".join(rng.choices(words, k=rng.randint(1, 15))) for _ in range(20)]
    target = [" ".join(rng.choices([*words[:4], "unseen"], k=rng.randint(1, 6))) for _ in range(5)]
    meter, signal = Aimed(rows, target), Bm25(k1=k1, b=b)
    found = signal.measure(meter, torch.tensor([3, 0, 19]))  # type: ignore[arg-type]
    expected = [sum(bm25(rows[i], v, rows, k1, b) for v in target) / 5 for i in (3, 0, 19)]
    assert found.tolist() == pytest.approx(expected)
    weighter = Adapt(by=signal, tau=4.0)
    assert weighter.needs_of_target() == ()
    weights = weighter.weigh(weighter.init(meter.index), torch.ones(3), weighing([0] * 3, values={signal: found}))
    assert weights.tolist() == pytest.approx((found / 4).sigmoid().tolist(), abs=1e-6)
    other = Aimed(rows[:10], target[:2])  # another pool is counted anew
    expected = [sum(bm25(rows[3], v, rows[:10], k1, b) for v in target[:2]) / 2]
    assert signal.measure(other, torch.tensor([3])).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("tau", 0.0), ("tau", float("nan")), ("every", 0)])
def test_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        Adapt(by=BY, **{field: value})  # type: ignore[arg-type]
    for settings in ({"k1": -1.0}, {"b": 1.5}, {"max_rows": 0}):
        with pytest.raises(ConfigError):
            Bm25(**settings)  # type: ignore[arg-type]
