"""Perplexity pruning: ranks by hand; the trigram model against an independent dictionary of modified Kneser-Ney."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.perplexity import Perplexity
from regimen.signals.kneser_ney import NgramPerplexity, Trigrams
from tests.reference.observations import LOSS
from tests.reference.selections import check_selector, kept
from tests.reference.texts import Texts, real

TEN = [5.0, 3.0, 9.0, 0.0, 7.0, 1.0, 8.0, 2.0, 6.0, 4.0]


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ({"keep": "low", "ratio": 0.3}, {0, 1, 2}),
        ({"keep": "middle", "ratio": 0.3}, {3, 4, 5}),
        ({"keep": "middle", "ratio": None, "count": 4}, {3, 4, 5, 6}),
        ({"keep": "high", "ratio": 0.3}, {7, 8, 9}),
        ({"ratio": None, "quantiles": [0.1, 0.3]}, {1, 2}),
        ({"ratio": None, "quantiles": [0.0, 0.33]}, {0, 1, 2, 3}),
        ({"ratio": None, "quantiles": [0.33, 1.0]}, {4, 5, 6, 7, 8, 9}),
    ],
)
def test_ranks(settings, scores):
    assert {TEN[i] for i in kept(Perplexity(by=LOSS, **settings), TEN)} == scores


def test_thirds_split_the_rows():
    thirds = [kept(Perplexity(by=LOSS, ratio=None, quantiles=q), TEN) for q in ([0, 0.33], [0.33, 0.66], [0.66, 1])]
    assert sorted(i for third in thirds for i in third) == list(range(10))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=1, max_size=20), st.data())
def test_properties(scores, data):
    count, keep = data.draw(st.integers(1, len(scores))), data.draw(st.sampled_from(["low", "middle", "high"]))
    check_selector(Perplexity(by=LOSS, keep=keep, ratio=None, count=count), scores, count, seed=count)


class Dictionary:
    """Interpolated modified Kneser-Ney trigrams, word by word, as its formulas say."""

    def __init__(self, rows: list[list[str]]) -> None:
        third = Counter(t for r in rows for t in zip(["<", "<", *r], ["<", *r], r, strict=False))
        second, first = Counter(t[1:] for t in third), Counter()
        for _, word in second:
            first[(word,)] += 1
        self.counts = {1: first, 2: second, 3: third}
        self.words = [*sorted({w for r in rows for w in r}), "?"]
        self.followers = {n: defaultdict(list) for n in (1, 2, 3)}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[n][gram[:-1]].append(count)

    def taken(self, n: int, count: int) -> float:
        c = Counter(self.counts[n].values())
        if not all(c[i] for i in (1, 2, 3, 4)):
            return [0, 0.5, 1.0, 1.5][min(count, 3)]
        y = c[1] / (c[1] + 2 * c[2])
        discounts = [0, *(k - (k + 1) * y * c[k + 1] / c[k] for k in (1, 2, 3))]
        return (discounts if min(discounts[1:]) > 0 else [0, 0.5, 1.0, 1.5])[min(count, 3)]

    def p(self, *gram: str) -> float:
        if not gram:
            return 1 / len(self.words)
        n, seen = len(gram), self.followers[len(gram)].get(gram[:-1], [])
        if not seen:
            return self.p(*gram[1:])
        count = self.counts[n][gram]
        backoff = sum(self.taken(n, c) for c in seen) / sum(seen)
        return (count - self.taken(n, count)) / sum(seen) + backoff * self.p(*gram[1:])


def sample(words: int, size: int, seed: int = 0) -> list[str]:
    """Rows of a Zipf-like draw of words."""
    draw = np.random.default_rng(seed)
    ranks = np.minimum(draw.zipf(1.3, size=size), words)
    return [" ".join(f"w{i}" for i in row) for row in np.array_split(ranks, max(size // 12, 1))]


@pytest.mark.parametrize(("words", "size"), [(5, 30), (12, 400), (60, 1500)])
def test_probabilities_equal_the_dictionary(words, size):
    texts = sample(words, size)
    model, slow = Trigrams.fit(texts, min_count=1), Dictionary([text.split() for text in texts])
    names = {**model.words, "?": 1, "<": 0}
    grams = [
        t for text in sample(words + 2, 200, seed=1) for t in zip(*(text.split()[i:] for i in range(3)), strict=False)
    ]
    grams = [tuple(w if w in model.words else "?" for w in gram) for gram in grams]
    grams += [("<", "<", w) for w in slow.words] + [("<", w, v) for w, v in pairwise(slow.words)]
    size = len(model.words) + 2
    keys = np.array([(names[u] * size + names[v]) * size + names[w] for u, v, w in grams], np.int64)
    assert model.probabilities(keys).tolist() == pytest.approx([slow.p(*gram) for gram in grams], rel=1e-9)


def test_probabilities_sum_to_one_after_any_two_words():
    model = Trigrams.fit(sample(20, 300), min_count=2)
    size = len(model.unigrams)
    assert model.unigrams.sum() == pytest.approx(1)
    for u, v in product(range(0, size, 3), repeat=2):
        keys = np.array([(u * size + v) * size + w for w in range(1, size)], np.int64)
        assert model.probabilities(keys).sum() == pytest.approx(1)


def test_perplexity_of_a_text():
    texts = ["the cat sat", "the cat ran", "a dog sat"]
    model, slow = Trigrams.fit(texts, min_count=1), Dictionary([text.split() for text in texts])
    nats = slow.p("<", "<", "the"), slow.p("<", "the", "dog"), slow.p("the", "dog", "?")
    expected = math.exp(-sum(map(math.log, nats)) / 3)
    assert model.perplexity("The  dog barked") == pytest.approx(expected)
    assert model.perplexity("") == len(slow.words)
    assert Trigrams.fit([], min_count=1).perplexity("x y") == pytest.approx(1), "one word is possible: the unknown one"
    assert set(Trigrams.fit(texts, min_count=2).words) == {"the", "cat", "sat"}


def test_a_row_is_not_measured_by_a_model_that_knows_it():
    texts = sample(30, 240)
    meter = Texts(texts, ["w1 w2 w3"])
    found = NgramPerplexity(train=["a"], min_count=1).measure(meter, meter.ids)
    halves = [Trigrams.fit(texts[1 - part :: 2], min_count=1) for part in (0, 1)]
    expected = [halves[i % 2].perplexity(text) for i, text in enumerate(texts)] + [halves[0].perplexity("w1 w2 w3")]
    assert found.tolist() == pytest.approx(expected)
    known = NgramPerplexity(train=["a"], min_count=1, folds=1).measure(meter, meter.ids[:-1])
    assert bool((known < found[:-1]).double().mean() > 0.95)
    few = NgramPerplexity(max_rows=6, min_count=1).measure(meter, torch.tensor([3]))
    assert few.tolist() != found[3:4].tolist()


def test_real_text_like_the_counted_is_low_and_other_text_is_high(shared):
    law, code = real(shared, "law", count=400), real(shared, "code", count=40)
    draw = np.random.default_rng(0)
    shuffled = [" ".join(draw.permutation(text.split())) for text in law[:40]]
    meter = Texts(law, code, shuffled)
    signal = NgramPerplexity(train="a")
    values = signal.measure(meter, meter.ids)
    assert bool((values[440:] > values[:40]).all()), "the same words in another order"
    assert float((values[400:440] > values[:400].quantile(0.9)).double().mean()) > 0.9
    low = Perplexity(by=signal, keep="low", ratio=0.5).decide(None, meter.seen(signal))
    assert float((low < 400).double().mean()) == 1.0


def test_refused():
    for settings, words in (
        ({"keep": "best"}, "low, middle, high"),
        ({"quantiles": [0.2, 0.8]}, "set ratio and count to null"),
        ({"ratio": None, "quantiles": [0.8, 0.2]}, "lower < upper"),
        ({"ratio": None}, "one of the two"),
    ):
        with pytest.raises(ConfigError, match=words):
            Perplexity(by=LOSS, **settings)
    with pytest.raises(ConfigError, match="1 or more"):
        NgramPerplexity(folds=0)
    with pytest.raises(ConfigError, match="each fold"):
        NgramPerplexity(folds=3).measure(Texts(["x"] * 2), torch.arange(1))
    assert hash(NgramPerplexity(train=["a"])) == hash(NgramPerplexity(train=("a",)))
