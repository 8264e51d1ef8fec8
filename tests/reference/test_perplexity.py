"""Perplexity pruning: ranks by hand; the n-gram model against an independent dictionary of modified Kneser-Ney."""

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
from regimen.signals.kneser_ney import NgramPerplexity, words_of
from regimen.signals.ngram_model import Ngrams
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


def windows(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


class Dictionary:
    """Interpolated modified Kneser-Ney, word by word, as its formulas say."""

    def __init__(self, rows: list[list[str]], n: int = 3) -> None:
        self.counts = {n: Counter(t for r in rows for t in windows(["<"] * (n - 1) + r, n))}
        for k in range(n - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in self.counts[k + 1])  # distinct words before each
        self.words = [*sorted({w for r in rows for w in r}), "?"]
        self.followers = {k: defaultdict(list) for k in self.counts}
        for k, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[k][gram[:-1]].append(count)

    def taken(self, n: int, count: int) -> float:
        c, k = Counter(self.counts[n].values()), min(count, 3)
        if all(c[i] for i in {1, 2, k, k + 1}):
            discount = k - (k + 1) * c[1] / (c[1] + 2 * c[2]) * c[k + 1] / c[k]
            if discount > 0:
                return discount
        return [0, 0.5, 1.0, 1.5][k]

    def p(self, *gram: str) -> float:
        if not gram:
            return 1 / len(self.words)
        n, seen = len(gram), self.followers[len(gram)].get(gram[:-1], [])
        if not seen:
            return self.p(*gram[1:])
        count = self.counts[n][gram]
        backoff = sum(self.taken(n, c) for c in seen) / sum(seen)
        return (count - self.taken(n, count)) / sum(seen) + backoff * self.p(*gram[1:])


def fit(texts: list[str], **settings: int) -> Ngrams:
    return Ngrams.fit(texts, words_of, **settings)


def sample(words: int, size: int, seed: int = 0) -> list[str]:
    """Rows of a Zipf-like draw of words."""
    draw = np.random.default_rng(seed)
    ranks = np.minimum(draw.zipf(1.3, size=size), words)
    return [" ".join(f"w{i}" for i in row) for row in np.array_split(ranks, max(size // 12, 1))]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize(("words", "size"), [(5, 30), (12, 400), (60, 1500)])
def test_probabilities_equal_the_dictionary(words, size, n):
    texts = sample(words, size)
    model, slow = fit(texts, n=n), Dictionary([text.split() for text in texts], n)
    names = {**model.words, "?": 1, "<": 0}
    grams = [gram for text in sample(words + 2, 200, seed=1) for gram in windows(text.split(), n)]
    grams = [tuple(w if w in model.words else "?" for w in gram) for gram in grams]
    grams += [("<",) * (n - 1) + (w,) for w in slow.words]
    grams += [("<",) * (n - 2) + (w, v) for w, v in pairwise(slow.words)]
    found = model.probabilities(np.array([[names[w] for w in gram] for gram in grams], np.int64))
    assert found.tolist() == pytest.approx([slow.p(*gram) for gram in grams], rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_probabilities_sum_to_one_after_any_words(n):
    """Of a vocabulary of five words and the unknown one, after all contexts of them; and of a larger one."""
    for model in (fit(sample(5, 60), n=n), fit(sample(20, 300), n=n, min_count=2)):
        size = len(model.unigrams)
        assert model.unigrams.sum() == pytest.approx(1)
        for context in product(range(0, size, 1 if size < 9 else 7), repeat=n - 1):
            grams = np.array([[*context, w] for w in range(1, size)], np.int64)
            assert model.probabilities(grams).sum() == pytest.approx(1, abs=1e-9)


def test_perplexity_of_a_text():
    texts = ["the cat sat", "the cat ran", "a dog sat"]
    model, slow = fit(texts), Dictionary([text.split() for text in texts])
    nats = slow.p("<", "<", "the"), slow.p("<", "the", "dog"), slow.p("the", "dog", "?")
    expected = math.exp(-sum(map(math.log, nats)) / 3)
    assert model.perplexity(words_of("The  dog barked")) == pytest.approx(expected)
    assert model.perplexity([]) == len(slow.words)
    assert fit([]).perplexity(["x", "y"]) == pytest.approx(1), "one word is possible: the unknown one"
    assert set(fit(texts, min_count=2).words) == {"the", "cat", "sat"}


def test_a_row_is_not_measured_by_a_model_that_knows_it():
    texts = sample(30, 240)
    meter = Texts(texts, ["w1 w2 w3"])
    found = NgramPerplexity(train=["a"], min_count=1).measure(meter, meter.ids)
    halves = [fit(texts[1 - part :: 2]) for part in (0, 1)]
    expected = [halves[i % 2].perplexity(words_of(text)) for i, text in enumerate(texts)] + [
        halves[0].perplexity(["w1", "w2", "w3"])
    ]
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
