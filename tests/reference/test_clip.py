"""CLIP-powered selection (arXiv 2410.11215): adapters, alignment, diversity, and both solvers against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from regimen.core.errors import ConfigError
from regimen.core.strategy import Observation
from regimen.data.pairs import encode_pairs
from regimen.selection import clip_solver
from regimen.selection.clip import Clip
from regimen.selection.clip_adapters import fit_adapters, identity, info_nce
from regimen.selection.clip_solver import alignment, closed_form, descent, diversity, straight_through
from regimen.signals.clip_features import ClipFeatures, Pairs, joined
from tests.reference.observations import index_of, seeing
from tests.reference.texts import Texts
from tests.support.shapes import KINDS, tiny_clip, write_pairs

NAN = float("nan")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(rand(*shape, seed=seed), dim=1)


@pytest.fixture
def features(tmp_path: Path) -> ClipFeatures:
    """A signal to name features by; the observations bring their own."""
    (tmp_path / "a.npz").touch()
    return ClipFeatures(path=str(tmp_path / "a.npz"))


def observing(
    by: ClipFeatures, pairs: Pairs, *, target: Pairs | None = None, of: ClipFeatures | None = None, order=None
) -> Observation:
    ids = torch.arange(len(pairs.image)) if order is None else torch.as_tensor(order)
    seen = seeing(joined(pairs)[ids], ids=ids, by=by, index=index_of([len(pairs.image)], 10))
    if target is None:
        return seen
    given_target = {of: joined(target)}
    return dataclasses.replace(seen, target=index_of([len(target.image)]), target_values=given_target)


def kept(selector: Clip, seen: Observation) -> list[int]:
    return selector.checked(selector.decide(selector.init(seen.index), seen), seen).ids.tolist()


def plain(by: ClipFeatures, **settings) -> Clip:
    """Without adapters, unless told otherwise."""
    return Clip(**{"by": by, "target": None, "adapter_steps": 0, **settings})


@pytest.mark.parametrize("label", [None, [0, 1, 0, 2, 2]])
def test_info_nce_by_hand(label):
    image, text, tau = unit(5, 3, seed=1), unit(5, 3, seed=2), 0.2
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or label is None or label[j] != label[i]]
        own = math.exp(float(image[i] @ text[i]) / tau)
        total -= math.log(own / sum(math.exp(float(image[i] @ text[j]) / tau) for j in others)) / 10
        total -= math.log(own / sum(math.exp(float(image[j] @ text[i]) / tau) for j in others)) / 10
    classes = None if label is None else torch.tensor(label)
    assert float(info_nce(image, text, classes, temperature=tau)) == pytest.approx(total, abs=1e-12)


def test_adapters_undo_a_turn_and_start_as_nothing():
    """Texts are images turned by an unknown rotation: plain cosines say nothing of new pairs, adapted ones find all."""
    turn = torch.linalg.qr(rand(8, 8, seed=3)).Q
    image, fresh = rand(200, 8, seed=4), rand(50, 8, seed=5)
    start = identity(8)
    torch.testing.assert_close(start.image(fresh), normalize(fresh, dim=1), rtol=0, atol=1e-15)
    settings = {"learning_rate": 0.03, "temperature": 0.1, "generator": torch.Generator().manual_seed(0)}
    for batch in (None, 64):
        found = fit_adapters(Pairs(image, image @ turn, None), steps=150, batch=batch, **settings)
        cosines = found.image(fresh) @ found.text(fresh @ turn).T  # (50, 50)
        assert (cosines.argmax(1) == torch.arange(50)).all()
        assert not found.image.weight.requires_grad
        before = start.image(fresh) @ start.text(fresh @ turn).T
        assert (before.argmax(1) == torch.arange(50)).double().mean() < 0.3


def brute_diversity(image: Tensor, label: list[int], part: float) -> list[float]:
    found: list[float | None] = []
    for i, kind in enumerate(label):
        same = [j for j, other in enumerate(label) if other == kind]
        far = sorted(float((image[i] - image[j]).norm()) for j in same if j != i)
        k = min(max(math.floor(part * len(same) + 1e-9), 1), len(far))
        found.append(sum(far[:k]) / k if far else None)
    known = [value for value in found if value is not None]
    return [sum(known) / len(known) if value is None else value for value in found]


@pytest.mark.parametrize("part", [0.1, 0.3, 1.0])
def test_diversity_by_brute_force(part):
    """Classes of 31, 8 (fewer than ten: one neighbour), 2, and a single row, which gets the mean of the others."""
    image, label = unit(42, 4), [0] * 31 + [5] * 8 + [9] * 2 + [7]
    found = diversity(image, torch.tensor(label), neighbours=part)
    assert found.tolist() == pytest.approx(brute_diversity(image, label, part), abs=1e-9)
    everyone = diversity(image, None, neighbours=part)
    assert everyone.tolist() == pytest.approx(brute_diversity(image, [0] * 42, part), abs=1e-9)


def test_diversity_a_part_at_a_time(monkeypatch):
    image = unit(50, 4)
    whole = diversity(image, None, neighbours=0.2)
    monkeypatch.setattr(clip_solver, "_CHUNK", 300)  # eight parts
    torch.testing.assert_close(diversity(image, None, neighbours=0.2), whole, rtol=0, atol=1e-12)


def test_diversity_of_copies_and_of_loners():
    image = unit(20, 6)
    image[3] = image[12]
    image[15] = image[12] + 1e-8  # another encoding of the same image
    found = diversity(normalize(image, dim=1), None, neighbours=0.1)  # two neighbours
    assert (found == 0).nonzero()[:, 0].tolist() == [3, 12, 15]
    twice = unit(90, 64).repeat(2, 1)
    assert (diversity(normalize(twice + 1e-9 * rand(180, 64), dim=1), None, neighbours=0.005) == 0).all()
    assert diversity(image[:3], torch.tensor([4, 5, 6]), neighbours=0.1).tolist() == [0.0, 0.0, 0.0]
    assert (diversity(image[:1].expand(9, 6), None, neighbours=1.0) == 0).all()


def test_the_closed_form_is_the_optimum():
    """Over all 2^9 sets, with p at its best for each: 1 where kept; where not, at .5 or 0 as the score's sign asks."""
    for seed in range(4):
        scores = rand(9, seed=seed)
        big = float(scores.abs().max()) + 0.01
        for k in range(1, 9):
            values = {}
            for chosen in itertools.product([False, True], repeat=9):
                inside = torch.tensor(chosen)
                p = torch.where(inside, torch.where(scores > 0, 1.0, 0.5), torch.where(scores > 0, 0.5, 0.0))
                values[chosen] = float(-(p * scores).mean() + big * (inside.double().mean() - k / 9).abs())
            best = min(values, key=values.__getitem__)
            assert sorted(closed_form(scores, k).tolist()) == [i for i in range(9) if best[i]]


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_descent_follows_the_straight_through_gradient(penalty):
    """25 steps against autograd of N times the objective, with the indicator's backward pass an identity in p."""
    scores, k, rate = rand(12), 4, 0.3
    logits = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    for step in range(25):
        p = logits.sigmoid()
        indicator = (p > 0.5).double() + p - p.detach()
        loss = -(p * scores).mean() + penalty * (indicator.mean() - k / 12).abs()
        (slope,) = torch.autograd.grad(12 * loss, logits)
        logits = (logits - rate * (1 - step / 25) * slope).detach().requires_grad_()
    settings = {"penalty": penalty, "steps": 25, "learning_rate": rate}
    torch.testing.assert_close(descent(scores, k, **settings), logits.detach(), rtol=0, atol=1e-12)
    above = [i for i in scores.argsort(descending=True).tolist() if logits[i] > 0]
    assert straight_through(scores, k, **settings).tolist() == above
    assert 0 < len(above) < 12


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=40), st.data())
def test_descent_keeps_a_top_set(scores, data):
    """Whatever the number of steps, no row is kept while one with a higher score is not."""
    values, k = torch.tensor(scores, dtype=torch.float64), data.draw(st.integers(1, len(scores)))
    chosen = straight_through(values, k, penalty=20.0, steps=data.draw(st.integers(1, 60)), learning_rate=0.4)
    rest = torch.ones(len(scores), dtype=torch.bool).index_fill_(0, chosen, False)
    assert not len(chosen) or not rest.any() or float(values[chosen].min()) >= float(values[rest].max())


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.9])
def test_descent_and_closed_form_agree(ratio, features):
    """Random scores, the default settings: 95% the same (the specification), and the number of rows within 1%."""
    for seed in range(3):
        scores = torch.rand(400, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
        k, settings = math.ceil(ratio * 400), plain(features)
        best = set(closed_form(scores, k).tolist())
        found = straight_through(
            scores, k, penalty=settings.penalty, steps=settings.solver_steps, learning_rate=settings.solver_lr
        )
        assert abs(len(found) - k) <= 4
        assert len(best & set(found.tolist())) >= 0.95 * k


@pytest.mark.parametrize("ratio", [0.01, 0.07, 0.29, 0.5, 0.999, 1.0])
def test_the_ratio_is_met_within_one_row(ratio, features):
    for n in (2, 3, 10, 37, 100):
        found = kept(plain(features, ratio=ratio), observing(features, Pairs(rand(n, 3), rand(n, 3, seed=1), None)))
        assert 0 <= len(found) / n - ratio < 1 / n
    assert len(kept(plain(features, ratio=0.29), observing(features, Pairs(rand(100, 3), rand(100, 3), None)))) == 29


def test_scores_without_adapters(features):
    image, text, label = rand(30, 5), rand(30, 5, seed=1), torch.arange(30) % 3
    seen = observing(features, Pairs(image, text, label))
    selector = plain(features, diversity_weight=0.7, ratio=0.4)
    a, t = normalize(image, dim=1), normalize(text, dim=1)
    want = alignment(a, t) + 0.7 * torch.tensor(brute_diversity(a, label.tolist(), 0.1), dtype=torch.float64)
    torch.testing.assert_close(selector.scores(seen), want, rtol=0, atol=1e-9)
    torch.testing.assert_close(alignment(a, t), torch.cosine_similarity(image, text), rtol=0, atol=1e-12)
    assert selector.decide(None, seen).tolist() == want.argsort(descending=True)[:12].tolist()
    assert len(kept(plain(features, ratio=0.41), seen)) == 13  # ceil
    assert len(kept(plain(features, ratio=None, count=7), seen)) == 7
    assert len(kept(plain(features, ratio=None, token_ratio=0.5), seen)) == 15
    found = kept(plain(features, solver="ste", ratio=0.4), seen)
    assert abs(len(found) - 12) <= 1


def test_names_of_classes_and_the_order_of_rows_do_not_matter(features):
    image, text, label = rand(40, 5), rand(40, 5, seed=1), torch.arange(40) % 4
    pairs = Pairs(image, text, label)
    selector = plain(features, adapter_steps=20, batch=16, ratio=0.3)
    first = kept(selector, observing(features, pairs))
    assert kept(selector, observing(features, pairs._replace(label=torch.tensor([3, 17, 0, 5])[label]))) == first
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert kept(selector, observing(features, pairs, order=order)) == first
    assert kept(selector, observing(features, pairs._replace(label=torch.arange(40) // 10))) != first


def test_the_target_set_decides_what_agrees(features, tmp_path):
    """Pool pairs agree by one rotation or by another; adapters fitted to targets of the first keep its pairs."""
    (tmp_path / "t.npz").touch()
    of = ClipFeatures(path=str(tmp_path / "t.npz"))
    turns = [torch.linalg.qr(rand(8, 8, seed=s)).Q for s in (10, 11)]
    image, wanted = rand(60, 8, seed=12), rand(150, 8, seed=13)
    text = torch.where((torch.arange(60) % 2 == 0)[:, None], image @ turns[0], image @ turns[1])
    selector = plain(features, target=of, adapter_steps=150, adapter_lr=0.02, diversity_weight=0.0, ratio=0.5)
    assert selector.needs_of_target() == (of,) and selector.needs() == (features,)
    seen = observing(features, Pairs(image, text, None), target=Pairs(wanted, wanted @ turns[0], None), of=of)
    assert kept(selector, seen) == list(range(0, 60, 2))
    seen = observing(features, Pairs(image, text, None), target=Pairs(wanted, wanted @ turns[1], None), of=of)
    assert kept(selector, seen) == list(range(1, 60, 2))


def test_captions_of_another_image_get_the_lowest_alignment(tmp_path):
    """End to end on drawn shapes: a CLIP with random weights sees nothing, adapters fitted to right pairs see all."""
    clip, rng = tiny_clip(tmp_path / "clip"), random.Random(1)
    right = [kind for kind in KINDS for _ in range(8)]
    kinds = [rng.choice(KINDS) for _ in range(40)]
    wrong = list(range(0, 40, 7))
    captions = list(kinds)
    for i in wrong:
        captions[i] = rng.choice([kind for kind in KINDS if kind.split()[0] != kinds[i].split()[0]])
    listed = (
        write_pairs(tmp_path / "target", right, right, seed=1),
        write_pairs(tmp_path / "pool", kinds, captions, seed=2),
    )
    of, by = (ClipFeatures(path=str(encode_pairs(file, file.with_suffix(".npz"), model=clip))) for file in listed)
    seen, meter = Texts(captions).seen(by), Texts(right)
    seen = dataclasses.replace(seen, target=meter.index, target_values={of: of.measure(meter, meter.ids)})
    selector = Clip(by=by, target=of, diversity_weight=0.0, ratio=None, count=40 - len(wrong))
    scores = selector.scores(seen)
    assert sorted(scores.argsort()[: len(wrong)].tolist()) == wrong
    assert not set(wrong) & set(kept(selector, seen))
    before = dataclasses.replace(selector, adapter_steps=0).scores(seen)
    assert len(set(before.argsort()[: len(wrong)].tolist()) & set(wrong)) < len(wrong)


def test_what_cannot_be_decided(features, tmp_path):
    pairs = Pairs(rand(6, 3), rand(6, 3, seed=1), None)
    for side in ("image", "text"):
        for bad in (NAN, float("inf")):
            spoilt = getattr(pairs, side).clone()
            spoilt[2, 1] = bad
            with pytest.raises(
                ConfigError, match="1 of the 6 pairs of the rows to choose from are missing or not finite"
            ):
                kept(plain(features), observing(features, pairs._replace(**{side: spoilt})))
    with pytest.raises(ConfigError, match="allowed: 1 to 6"):
        kept(plain(features, ratio=None, count=7), observing(features, pairs))
    with pytest.raises(ConfigError, match="too few pairs"):
        kept(plain(features), observing(features, Pairs(rand(1, 3), rand(1, 3), None)))
    (tmp_path / "t.npz").touch()
    of = ClipFeatures(path=str(tmp_path / "t.npz"))
    with pytest.raises(ConfigError, match=r"dataset\.target\.path=FILE or dataset\.target\.from"):
        kept(plain(features, target=of), observing(features, pairs))
    for target, words in (
        (Pairs(rand(6, 4), rand(6, 4), None), "different models"),
        (Pairs(rand(1, 3), rand(1, 3), None), "too few pairs"),
        (Pairs(rand(2, 3), rand(2, 3) * NAN, None), "2 of the 2 pairs of the target set"),
    ):
        with pytest.raises(ConfigError, match=words):
            kept(plain(features, target=of), observing(features, pairs, target=target, of=of))


def test_a_descent_that_misses_says_so(features):
    pairs = Pairs(rand(60, 3), rand(60, 3, seed=1), None)
    selector = plain(features, solver="ste", penalty=0.0, diversity_weight=3.0, ratio=0.2)
    seen = observing(features, pairs)
    decision = selector.checked(selector.decide(None, seen), seen)
    assert len(decision.ids) > 40
    assert "not 12: raise its penalty" in selector.notes(None, decision, seen)[0]
    opposed = Pairs(torch.ones(6, 3), -torch.ones(6, 3), None)
    with pytest.raises(ConfigError, match="use solver=closed_form"):
        kept(plain(features, solver="ste", penalty=0.0), observing(features, opposed))
    good = plain(features, solver="ste", ratio=0.2)
    assert good.notes(None, good.checked(good.decide(None, seen), seen), seen) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "sgd"}, "closed_form, ste"),
        ({"adapter_steps": -1}, "0 or more, and 1 or more"),
        ({"solver_steps": 0}, "0 or more, and 1 or more"),
        ({"adapter_lr": 0}, "adapter_lr"),
        ({"temperature": NAN}, "temperature"),
        ({"solver_lr": float("inf")}, "solver_lr"),
        ({"penalty": -1}, "penalty"),
        ({"diversity_weight": NAN}, "diversity_weight"),
        ({"neighbours": 0}, "0 < neighbours <= 1"),
        ({"batch": 1}, "null"),
        ({"ratio": None}, "one of the two"),
        ({"count": 3}, "set the other to null"),
        ({"ratio": 1.2}, "0 < ratio <= 1"),
    ],
)
def test_settings(settings, words, features):
    with pytest.raises(ConfigError, match=words):
        Clip(by=features, target=None, **settings)
