"""How many rows are kept: rows, shares of rows, shares of target tokens; exact, and the same for every selector."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.strategy import Selector
from regimen.selection.common import amount, check_amount, kept_of, require_amount, rows_near
from regimen.selection.density import Density
from regimen.selection.dsir import Dsir
from regimen.selection.perplexity import Perplexity
from regimen.selection.qurating import QuRating
from regimen.selection.random import RandomSelection
from regimen.selection.scores import Scores
from regimen.selection.topk import TopK
from regimen.signals.ngrams import NgramFeatures, NgramLogRatio
from tests.reference.observations import LOSS, index_of, seeing

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=12)
RATIOS = st.sampled_from([0.001, 0.05, 0.1, 0.29, 0.5, 0.57, 0.999, 1.0, 1])
FEATURES, LOG_RATIO = NgramFeatures(), NgramLogRatio(target=["a"])
SELECTORS = {
    "random": RandomSelection(ratio=None, token_ratio=0.3),
    "topk": TopK(by=LOSS, ratio=None, token_ratio=0.3),
    "scores": Scores(by=LOSS, ratio=None, token_ratio=0.3),
    "proportional": Scores(by=LOSS, rule="proportional", ratio=None, token_ratio=0.3),
    "qurating": QuRating(by=LOSS, ratio=None, token_ratio=0.3),
    "dsir": Dsir(by=LOG_RATIO, min_tokens=0, ratio=None, token_ratio=0.3),
    "low": Perplexity(by=LOSS, keep="low", ratio=None, token_ratio=0.3),
    "middle": Perplexity(by=LOSS, keep="middle", ratio=None, token_ratio=0.3),
    "high": Perplexity(by=LOSS, keep="high", ratio=None, token_ratio=0.3),
    "density": Density(by=FEATURES, ratio=None, token_ratio=0.3),
}
SIGNALS = {"dsir": LOG_RATIO, "density": FEATURES}


def tensor(tokens: list[int]) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


@given(TOKENS, RATIOS)
def test_the_nearest_total_with_the_fewest_rows(tokens, ratio):
    """By trying every length, with exact fractions; at least one token where there is one."""
    budget = Fraction(str(ratio)) * sum(tokens)
    found = rows_near(tensor(tokens), budget)
    if sum(tokens) == 0:
        assert found == 0
        return
    lengths = [k for k in range(1, len(tokens) + 1) if sum(tokens[:k]) > 0]
    assert found == min(lengths, key=lambda k: (abs(sum(tokens[:k]) - budget), k))
    assert abs(sum(tokens[:found]) - budget) <= max(tokens), "within one row"


@pytest.mark.parametrize(
    ("tokens", "ratio", "kept"),
    [
        ([10] * 20, 0.05, 1),
        ([10] * 20, 0.3, 6),
        ([10] * 20, 0.29, 6),  # 58 tokens: 60 are nearer than 50
        ([10] * 20, 0.27, 5),  # 54: 50 are
        ([10] * 20, 0.275, 5),  # 55: as near, so the fewer
        ([1, 1000, 1, 1], 0.01, 1),  # the huge row would overshoot by more than 9 are missed by
        ([1, 1000, 1, 1], 0.9, 2),
        ([1000, 1, 1, 1], 0.01, 1),  # the best row alone is more than was asked for, but nothing cannot be trained on
        ([0, 0, 1000, 1], 0.01, 3),  # nor can rows without a token
        ([0, 5, 0, 5, 0], 0.5, 2),
        ([3, 4, 5], 1.0, 3),
        ([3, 4, 5], 1, 3),
        ([3, 4, 0], 1.0, 2),
        ([7], 0.001, 1),
    ],
)
def test_by_hand(tokens, ratio, kept):
    assert kept_of(tensor(tokens), None, None, ratio) == kept


def test_a_tenth_of_ten_million_tokens_is_exact():
    tokens = torch.full((100_000,), 100, dtype=torch.int32)
    assert kept_of(tokens, None, None, 0.1) == 10_000
    assert kept_of(tokens.long() * 10**9, None, None, 0.29) == 29_000, "beyond 2^53"


@given(TOKENS, RATIOS)
def test_without_token_ratio_it_is_amount(tokens, ratio):
    n = len(tokens)
    assert kept_of(tensor(tokens), None, n, None) == amount(n, None, n) == n
    if Fraction(str(ratio)) * n >= 1:
        assert kept_of(tensor(tokens), ratio, None, None) == amount(n, ratio, None)
    if sum(tokens):
        equal = tensor([4] * n)
        exact = Fraction(str(ratio)) * n
        assert abs(kept_of(equal, None, None, ratio) - exact) <= max(Fraction(1, 2), 1 - exact)


def test_rows_without_tokens_have_no_share():
    with pytest.raises(ConfigError, match="give ratio or count"):
        kept_of(tensor([0, 0, 0]), None, None, 0.5)
    seen = seeing([1.0, 2.0], index=index_of([2], 0))
    selector = QuRating(by=LOSS, ratio=None, token_ratio=0.5)
    with pytest.raises(ConfigError, match="kept no row"):
        selector.checked(selector.decide(None, seen), seen)


@pytest.mark.parametrize("build", [check_amount, require_amount])
@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        ((0.5, None, 0.5), "ratio and token_ratio both"),
        ((None, 3, 0.5), "count and token_ratio both"),
        ((0.5, 3, 0.5), "ratio and count and token_ratio all"),
        ((0.5, 3), "ratio and count both"),
        ((None, None, 0.0), "0 < token_ratio <= 1"),
        ((None, None, 1.01), "0 < token_ratio <= 1"),
        ((None, None, float("nan")), "0 < token_ratio <= 1"),
    ],
)
def test_refused(build, amounts, words):
    with pytest.raises(ConfigError, match=words):
        build(*amounts)


def test_one_of_the_three_is_required():
    with pytest.raises(ConfigError, match="token_ratio"):
        require_amount(None, None)
    for amounts in ((0.5, None), (None, 3), (None, None, 0.5)):
        require_amount(*amounts)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_refuses_two_amounts(name):
    with pytest.raises(ConfigError, match="ratio and token_ratio both"):
        dataclasses.replace(SELECTORS[name], ratio=0.5)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (Scores, {"rule": "threshold", "threshold": 1.0}),
        (Perplexity, {"quantiles": [0.1, 0.2]}),
        (QuRating, {"tokens": 5}),
    ],
)
def test_what_says_the_amount_by_itself_refuses_it(build, settings):
    with pytest.raises(ConfigError, match="token_ratio too"):
        build(by=LOSS, ratio=None, token_ratio=0.5, **settings)


def pool_of(tokens: list[int]) -> PoolIndex:
    """One domain of rows of these tokens."""
    return dataclasses.replace(index_of([len(tokens)], 1), target_tokens=tensor(tokens).int())


def kept(name: str, selector: Selector, tokens: list[int], *, mixed: bool = False, seed: int = 0) -> torch.Tensor:
    """Ids of rows of these tokens with scores 1, 2, ..., given in order or mixed."""
    n = len(tokens)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1)) if mixed else torch.arange(n)
    scores = torch.eye(n).double() if name == "density" else torch.arange(1.0, n + 1)
    seen = seeing(scores[order], ids=order, index=pool_of(tokens), by=SIGNALS.get(name, LOSS), seed=seed)
    return selector.checked(selector.decide(None, seen), seen).ids


@pytest.mark.parametrize("name", SELECTORS)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(0, 3))
def test_every_selector_keeps_that_part_of_the_tokens(name, tokens, seed):
    """So that two of them are matched: both totals are within half of one row of the same number, or one row large."""
    ids = kept(name, SELECTORS[name], tokens, seed=seed)
    total, budget = int(tensor(tokens)[ids].sum()), Fraction("0.3") * sum(tokens)
    assert abs(total - budget) <= Fraction(max(tokens), 2) or len(ids) == 1
    assert torch.equal(ids, kept(name, SELECTORS[name], tokens, mixed=True, seed=seed))


def test_which_rows_are_kept():
    """Ten rows with scores 1 to 10 of 1 to 10 tokens: .3 of 55 is 16.5."""
    tokens = list(range(1, 11))
    assert kept("topk", SELECTORS["topk"], tokens).tolist() == [8, 9]  # 10 and 9: 19 is nearer than 10
    assert kept("high", SELECTORS["high"], tokens).tolist() == [8, 9]
    assert kept("low", SELECTORS["low"], tokens).tolist() == [0, 1, 2, 3, 4]  # 15, not 21
    assert kept("middle", SELECTORS["middle"], tokens).tolist() == [3, 4, 5]  # 5, 6, then 4: 15, not 22
    assert kept("topk", TopK(by=LOSS, ratio=None, token_ratio=0.3, polarity=-1), tokens).tolist() == [0, 1, 2, 3, 4]


def test_equal_scores_are_taken_by_id():
    seen = seeing([1.0] * 4, index=pool_of([5, 1, 5, 9]))
    assert TopK(by=LOSS, ratio=None, token_ratio=0.3).decide(None, seen).tolist() == [0, 1]  # 6 of 20
    assert TopK(by=LOSS, ratio=None, token_ratio=0.25).decide(None, seen).tolist() == [0]


@pytest.mark.parametrize("keep", ["low", "middle", "high"])
@given(st.integers(1, 25), st.data())
def test_a_run_of_ranks_is_the_same_by_rows_and_by_equal_tokens(keep, n, data):
    count = data.draw(st.integers(1, n))
    index, scores = index_of([n], 4), torch.arange(n, dtype=torch.float64)
    seen = seeing(scores, index=index)
    by_rows = Perplexity(by=LOSS, keep=keep, ratio=None, count=count).decide(None, seen).tolist()
    first = {"low": 0, "middle": (n - count) // 2, "high": n - count}[keep]
    assert by_rows == list(range(first, first + count))
    share = Perplexity(by=LOSS, keep=keep, ratio=None, token_ratio=float(Fraction(count, n)))
    assert share.decide(None, seen).tolist() == by_rows


def test_qurating_gives_each_domain_its_part_of_its_tokens():
    index = index_of([10, 30], [7, 4])  # 70 and 120 tokens
    seen = seeing(torch.linspace(0, 1, 40), index=index)
    selector = QuRating(by=LOSS, temperature=0.0, per_domain=True, ratio=None, token_ratio=0.1)
    assert sorted(selector.decide(None, seen).tolist()) == [9, 37, 38, 39]
    few = QuRating(by=LOSS, temperature=0.0, per_domain=True, ratio=None, token_ratio=0.001)
    assert sorted(few.decide(None, seen).tolist()) == [9, 39]


def test_dsir_counts_the_tokens_of_rows_that_it_may_not_keep():
    """The part is of all rows, as random's is; rows too short to be kept may leave too little."""
    tokens = [1] * 10 + [10] * 10
    selector = Dsir(by=LOG_RATIO, min_tokens=5, ratio=None, token_ratio=0.5)
    ids = kept("dsir", selector, tokens)
    assert set(ids.tolist()) <= set(range(10, 20)) and len(ids) == 5  # 55 of 110 tokens: 50 are as near as 60
    with pytest.raises(ConfigError, match="10 rows that min_tokens=5"):
        kept("dsir", Dsir(by=LOG_RATIO, min_tokens=5, ratio=None, token_ratio=0.95), tokens)
