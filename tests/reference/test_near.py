"""NEAR (DataFlex): the method file's signal and rule against distances sorted by hand; embeddings and their pooling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.core.seeding import generator
from regimen.core.signal import Signal
from regimen.runs.strategies import make_strategies
from regimen.selection.targeted import Targeted
from regimen.signals import similarity
from regimen.signals.embedding import Embedding
from regimen.signals.ngrams import NgramFeatures
from regimen.signals.similarity import Similarity
from tests.support.vector_meter import VectorMeter, aiming, decided, meter_of


def built(method: str) -> Targeted:
    """The strategy of a method file."""
    text = (conf_dir() / "method" / f"{method}.yaml").read_text()
    (placed,) = make_strategies(yaml.safe_load(text)["strategies"])
    assert isinstance(placed.strategy, Targeted)
    return placed.strategy


def chosen(selector: Targeted, meter: VectorMeter, count: int) -> list[int]:
    """Ids that a selector takes by what it needs, measured with a meter."""
    (by,) = selector.needs()
    values = by.measure(meter, torch.arange(meter.index.rows))
    seen = aiming(values, by=by, subtasks=meter.target.index.sizes.tolist())
    return decided(replace(selector, ratio=None, count=count), seen)


def states(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 5, generator=generator(seed))


def test_takes_the_nearest_of_every_target_row_then_the_second():
    rows, target = states(40, 1), states(4, 2)
    units, wanted = (x / x.norm(dim=1, keepdim=True) for x in (rows, target))
    nearest = [sorted(range(40), key=lambda i: (float((units[i] - w).norm()), i)) for w in wanted]  # by L2
    expected = list(dict.fromkeys(i for rank in zip(*nearest, strict=True) for i in rank))
    meter = meter_of(rows, rows, target_states=target)
    assert chosen(built("near"), meter, 17) == expected[:17]
    assert {what for what, _ in meter.asked + meter.target.asked} == {"-1 mean"}


def test_target_rows_that_are_in_the_pool_come_first():
    rows = states(30, 3)
    assert chosen(built("near"), meter_of(rows, rows, target_states=rows[[17, 4, 22]]), 3) == [17, 4, 22]


def test_embeddings_are_the_models_states():
    rows, other = states(6, 4), states(6, 5)
    meter = replace(meter_of(rows, rows), others={"outputs/encoder": meter_of(other, other)})
    ids = torch.tensor([4, 1])
    assert torch.equal(Embedding(normalise=False).measure(meter, ids), rows[ids])
    unit = Embedding().measure(meter, ids)
    assert torch.allclose(unit, rows[ids] / rows[ids].norm(dim=1, keepdim=True)) and unit.dtype == torch.float32
    elsewhere = Embedding(model="outputs/encoder", layer=2, pooling="last", normalise=False)
    assert torch.equal(elsewhere.measure(meter, ids), other[ids])
    assert meter.others["outputs/encoder"].asked == [("2 last", [4, 1])]
    assert elsewhere.models() == ("outputs/encoder",) and Embedding().models() == (None,)
    with pytest.raises(ConfigError, match="mean, position_weighted, last"):
        Embedding(pooling="first")


LEVELS = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0])
VECTORS = st.lists(st.lists(LEVELS, min_size=3, max_size=3), min_size=1, max_size=6)


@given(VECTORS, VECTORS)
def test_similarities_are_cosines_and_0_for_zeros(rows, target):
    meter = meter_of(torch.tensor(rows), torch.zeros(len(rows), 1), target_states=torch.tensor(target))
    raw = Embedding(normalise=False)
    cosines = Similarity(of=raw).measure(meter, torch.arange(len(rows)))
    inner = Similarity(of=raw, metric="inner").measure(meter, torch.arange(len(rows)))
    assert cosines.dtype == torch.float32
    for i, a in enumerate(rows):
        for j, b in enumerate(target):
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            norms = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
            assert float(cosines[i, j]) == pytest.approx(dot / norms if norms else 0.0, abs=1e-6)
            assert float(inner[i, j]) == dot


def test_tiny_vectors_have_a_direction():
    meter = meter_of(torch.eye(2) * 1e-15, torch.zeros(2, 1), target_states=torch.eye(2) * 1e15)
    assert torch.allclose(Similarity(of=Embedding(normalise=False)).measure(meter, torch.arange(2)), torch.eye(2))


def test_rows_are_measured_some_at_a_time(monkeypatch):
    rows = states(50, 6)
    whole = Similarity(of=Embedding()).measure(meter_of(rows, rows, target_states=rows[:3]), torch.arange(50))
    monkeypatch.setattr(similarity, "_ROWS", 7)
    meter = meter_of(rows, rows, target_states=rows[:3])
    assert torch.allclose(Similarity(of=Embedding()).measure(meter, torch.arange(50)), whole, atol=1e-6)
    assert max(len(ids) for _, ids in meter.asked) == 7 and len(meter.target.asked) == 1


def test_it_is_by_row_where_its_vectors_are():
    ids = torch.arange(3)
    assert Similarity(of=Embedding()).by_row and not Similarity(of=NgramFeatures()).by_row
    assert Similarity(of=Embedding()) == Similarity(of=Embedding())
    assert hash(Similarity(of=Embedding())) == hash(replace(Similarity(of=NgramFeatures()), of=Embedding()))
    two = Similarity(of=Embedding(model="a"), to=Embedding(model="b"))
    assert two.models() == ("a", "b") and two.passes() == 1.0
    assert Similarity(of=NgramFeatures(), to=NgramFeatures()).passes() == 0.0

    class Centred(Signal):
        def measure(self, meter, ids):
            return meter.states_of[ids] - meter.states_of[ids].mean(0)

    rows = states(3, 7)
    found = Similarity(of=Centred(), to=Embedding(), metric="inner").measure(
        meter_of(rows, rows, target_states=rows), ids
    )
    assert torch.allclose(found, (rows - rows.mean(0)) @ torch.nn.functional.normalize(rows).T, atol=1e-6)


def test_what_cannot_be_compared():
    rows = states(3, 8)
    meter = meter_of(rows, rows, target_states=torch.ones(2, 4))
    with pytest.raises(ConfigError, match="differ in length"):
        Similarity(of=Embedding()).measure(meter, torch.arange(3))
    with pytest.raises(ConfigError, match="no target set"):
        Similarity(of=Embedding()).measure(replace(meter, targets=None), torch.arange(3))
    with pytest.raises(ConfigError, match="cosine, inner"):
        Similarity(of=Embedding(), metric="l1")
    with pytest.raises(ConfigError, match="centre"):
        Similarity(of=Embedding(), to=Embedding(), centre=True)


def test_centred_similarities_are_those_of_vectors_less_the_mean_of_the_rows():
    rows, target, far = states(30, 7), states(4, 8), torch.tensor([9.0, -3.0, 0.0, 5.0, 1.0])
    of = Embedding(normalise=False)
    rows = rows - rows.mean(0)
    plain = Similarity(of=of).measure(meter_of(rows, rows, target_states=target), torch.arange(30))
    meter = meter_of(rows + far, rows + far, target_states=target + far)
    centred = Similarity(of=of, centre=True)
    assert torch.allclose(centred.measure(meter, torch.arange(30)), plain, atol=1e-5)
    assert float(Similarity(of=of).measure(meter, torch.arange(30)).min()) > 0.6, "or the cone was none"
    assert not centred.by_row
    some = torch.tensor([3, 8, 20])
    mean = rows[some].mean(0)
    expected = torch.nn.functional.cosine_similarity((rows[some] - mean)[:, None], (target - mean)[None], dim=2)
    assert torch.allclose(centred.measure(meter, some), expected, atol=1e-5)
