"""DSIR (arXiv 2302.03169): its weights by hand, its draws from their softmax, and a target found in real text."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.selection.dsir import Dsir
from regimen.signals.ngrams import NgramLogRatio, WordHashes, bag, ngram_hashes
from tests.reference.test_rules import assert_close, frequency, inclusion
from tests.reference.texts import Texts, real


def ratio(**settings) -> NgramLogRatio:
    return NgramLogRatio(**{"target": ("b",), "n": 1} | settings)


def two_buckets() -> tuple[str, str]:
    """A word of each of two buckets."""
    words = [f"w{i}" for i in range(20)]
    bucket = {word: int(WordHashes().of(word)[0]) % 2 for word in words}
    return next(w for w in words if bucket[w] == 0), next(w for w in words if bucket[w] == 1)


def test_two_buckets_by_hand():
    zero, one = two_buckets()
    meter = Texts([f"{zero} {zero} {one}", f"{one}", ""], [f"{zero} {zero} {zero} {one}"])
    up, down = math.log(0.75 / 0.5), math.log(0.25 / 0.5)  # raw: two of each
    found = ratio(buckets=2).measure(meter, torch.arange(3))
    assert found.tolist() == pytest.approx([2 * up + down, down, 0], abs=1e-7)
    mean = ratio(buckets=2, per_token=True).measure(meter, torch.arange(3))
    assert mean.tolist() == pytest.approx([(2 * up + down) / 3, down, 0], abs=1e-7)
    smooth = ratio(buckets=2, laplace=True).measure(meter, torch.arange(3))
    up, down = math.log((4 / 6) / (3 / 6)), math.log((2 / 6) / (3 / 6))
    assert smooth.tolist() == pytest.approx([2 * up + down, down, 0])


def test_a_bucket_that_the_target_lacks_has_the_floor():
    zero, one = two_buckets()
    found = ratio(buckets=2).measure(Texts([zero, one], [zero]), torch.arange(2))
    assert found.tolist() == pytest.approx([math.log(2), math.log(1e-8 / (0.5 + 1e-8))], rel=1e-6)


def test_target_equal_to_raw_is_a_uniform_draw():
    texts = ["one two three", "three two", "one", "two two", "five four"]
    meter = Texts(texts, list(reversed(texts)))
    signal = ratio(n=2)
    assert signal.measure(meter, torch.arange(5)).tolist() == [0.0] * 5
    selector = Dsir(by=signal, ratio=None, count=2)
    seen = meter.seen(signal, ids=torch.arange(5))
    draws = frequency(lambda g: selector.decide(None, dataclasses.replace(seen, generator=g)))
    assert_close(draws, torch.full((5,), 0.4, dtype=torch.float64))


def test_the_mean_over_the_target_is_the_divergence():
    """Measured on raw rows; the target's own n-grams weighed by these weights give KL(target || raw)."""
    raw, wanted = "a a b c", "a b b b"
    meter = Texts(raw.split(), [wanted])  # one word per row
    weight = dict(zip(raw.split(), ratio().measure(meter, torch.arange(4)).tolist(), strict=True))
    p, q = (Counter(text.split()) for text in (wanted, raw))
    divergence = sum(p[w] / 4 * math.log(p[w] / q[w]) for w in p)
    assert sum(p[w] / 4 * weight[w] for w in p) == pytest.approx(divergence, abs=1e-6)


def test_words_and_bigrams():
    table = WordHashes()
    assert [len(bag(table.of("It isn't  so..."), n)) for n in (1, 2, 9)] == [6, 11, 21]  # it isn ' t so ...
    assert table.of("It").tolist() == table.of("iT").tolist() == [0xD284D8DEC496F507]  # the same on every machine
    assert len(table.of("")) == len(ngram_hashes(table.of("one two"), 3)) == 0
    one, other = ngram_hashes(table.of("red dog"), 2), ngram_hashes(table.of("dog red"), 2)
    assert one != other and one == ngram_hashes(table.of("a red dog"), 2)[1]


def test_rows_are_drawn_by_importance():
    texts = ["a a", "a", "b", "c", "a b"]
    meter = Texts(texts, ["a a b c", "a b c"])
    signal = ratio()
    seen = meter.seen(signal, ids=torch.arange(5))
    values = seen.values[signal]
    for temperature in (1.0, 2.0):
        selector = Dsir(by=signal, ratio=None, count=2, temperature=temperature)
        draws = frequency(lambda g, s=selector: s.decide(None, dataclasses.replace(seen, generator=g)))
        assert_close(draws, inclusion((values / temperature).exp().tolist(), 2))


def test_rows_that_may_not_be_kept():
    signal = ratio()
    meter = Texts(["x"] * 4, ["y"] * 4)  # 200 tokens each
    selector = Dsir(by=signal, temperature=0.0, ratio=0.5)
    assert selector.decide(None, meter.seen(signal)).tolist() == [4, 5, 6, 7]
    dropped = Dsir(by=signal, temperature=0.0, ratio=0.5, target_rows="drop")
    assert dropped.decide(None, meter.seen(signal)).tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="0 rows that min_tokens=201"):
        Dsir(by=signal, min_tokens=201).decide(None, meter.seen(signal))


def test_settings():
    assert ratio(target=["b"]) == ratio(target="b") and hash(ratio(target=["b"])) == hash(ratio())
    for settings, words in (
        ({"target": ()}, "target names domains"),
        ({"n": 0}, "longest n-gram"),
        ({"buckets": 0}, "hash buckets"),
        ({"max_rows": 0}, "max_rows"),
    ):
        with pytest.raises(ConfigError, match=words):
            ratio(**settings)
    with pytest.raises(ConfigError, match="no such domain"):
        ratio(target="zz").measure(Texts(["x"], ["y"]), torch.arange(1))
    for settings in ({"temperature": -1.0}, {"target_rows": "first"}, {"ratio": None}):
        with pytest.raises(ConfigError):
            Dsir(by=ratio(), **settings)


def test_the_order_of_the_rows_does_not_matter():
    signal = ratio(n=2)
    meter = Texts([f"word {i} {i % 3}" for i in range(12)], ["word 1 1", "word 7"])
    selector = Dsir(by=signal, ratio=0.5)
    for seed in range(5):
        mixed = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        decisions = [selector.decide(None, meter.seen(signal, ids=ids, seed=3)) for ids in (torch.arange(12), mixed)]
        assert decisions[0].tolist() == decisions[1].tolist()
        assert len(set(decisions[0].tolist())) == 6


def precision(shared, wanted: str, target: list[str], **settings) -> float:
    """Of rows drawn at the true share from one nameless domain that mixes 150 rows of each of six."""
    domains = ("books", "code", "latex", "law", "medical", "stackexchange")
    mixed = [(domain, text) for domain in domains for text in real(shared, domain, count=150)]
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0)).tolist()
    meter = Texts([mixed[i][1] for i in order], target)
    signal = NgramLogRatio(target=("b",), **settings)
    seen = meter.seen(signal, ids=torch.arange(len(mixed)))
    kept = Dsir(by=signal, ratio=None, count=150, temperature=0.0 if signal.per_token else 1.0).decide(None, seen)
    return sum(mixed[order[i]][0] == wanted for i in kept.tolist()) / 150


@pytest.mark.parametrize("wanted", ["law", "code", "medical"])
def test_real_text_of_a_target_is_found(shared, wanted):
    """The target is other documents of the same kind; the names of the candidates' kinds are known to nobody."""
    target = real(shared, wanted, count=450)[150:]
    assert precision(shared, wanted, target) >= 0.95


@pytest.mark.parametrize("wanted", ["law", "code", "medical"])
def test_a_small_target_wants_smoothing(shared, wanted):
    """With 60 documents most n-grams were never seen: the floor of 1e-8 outweighs all else, and long rows lose."""
    target = real(shared, wanted, part="validation", count=60, shortest=50)
    rough = precision(shared, wanted, target)
    smooth = precision(shared, wanted, target, laplace=True)
    assert rough < smooth and smooth >= 0.9
    assert precision(shared, wanted, target, laplace=True, per_token=True) >= 0.95


def test_resampling_closes_the_divergence_from_the_target():
    """Of many rows of one word each, those drawn by importance have the words of the target: KL drops to 0."""
    wanted = {"red": 0.7, "green": 0.2, "blue": 0.1}
    raw = ["red"] * 1500 + ["green"] * 1500 + ["blue"] * 3000
    target = [word for word, part in wanted.items() for _ in range(int(1000 * part))]
    signal = ratio()
    meter = Texts(raw, target)
    seen = meter.seen(signal, ids=torch.arange(len(raw)))
    chosen = Dsir(by=signal, ratio=None, count=400, min_tokens=0).decide(None, seen).tolist()

    def divergence(words: list[str]) -> float:
        counts = Counter(words)
        return sum(p * math.log(p / (counts[word] / len(words))) for word, p in wanted.items())

    before, after = divergence(raw), divergence([raw[i] for i in chosen])
    exact = sum(p * math.log(p / (raw.count(word) / len(raw))) for word, p in wanted.items())
    assert before == pytest.approx(exact) and before > 0.5
    assert after < 0.02 * before  # (K - 1) / (2 * 400) = .0025 nats are expected of a sample
