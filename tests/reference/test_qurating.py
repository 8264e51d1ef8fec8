"""QuRating (arXiv 2402.09739): its softmax, its limits, and its budget of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.selection.qurating import QuRating, apportioned
from tests.reference.observations import LOSS, index_of, seeing
from tests.reference.selections import check_selector, kept
from tests.reference.test_rules import assert_close, frequency, inclusion

FIVE = [3.0, 1.0, 4.0, 1.5, 9.0]
SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=30)


@pytest.mark.parametrize("polarity", [1, -1])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_rows_are_drawn_from_the_softmax_of_standard_scores(polarity, temperature):
    selector = QuRating(by=LOSS, polarity=polarity, temperature=temperature, ratio=None, count=2)
    values = torch.tensor(FIVE, dtype=torch.float64)
    standard = polarity * (values - values.mean()) / values.std(correction=0)
    expected = inclusion((standard / temperature).exp().tolist(), 2)
    assert_close(frequency(lambda g: torch.tensor(kept(selector, FIVE, seed=g.initial_seed()))), expected)


@given(SCORES, st.sampled_from([1, -1]), st.data())
def test_temperature_zero_is_top_k(scores, polarity, data):
    count = data.draw(st.integers(1, len(scores)))
    selector = QuRating(by=LOSS, polarity=polarity, temperature=0.0, ratio=None, count=count)
    best = sorted(range(len(scores)), key=lambda i: (-polarity * scores[i], i))
    assert kept(selector, scores) == sorted(best[:count])


@given(SCORES, st.booleans(), st.data())
def test_properties(scores, per_domain, data):
    count = data.draw(st.integers(1, len(scores)))
    check_selector(QuRating(by=LOSS, per_domain=per_domain, ratio=None, count=count), scores, count, seed=count)


def test_a_large_temperature_and_a_constant_score_are_uniform():
    uniform = torch.full((5,), 0.4, dtype=torch.float64)
    for scores, temperature in ((FIVE, 1e6), ([2.0] * 5, 0.5)):
        selector = QuRating(by=LOSS, temperature=temperature, ratio=None, count=2)
        draws = frequency(lambda g, s=selector, x=scores: torch.tensor(kept(s, x, seed=g.initial_seed())))
        assert_close(draws, uniform)


def decided(selector: QuRating, *, seed: int = 0) -> torch.Tensor:
    """Ids kept of ten rows of 7 tokens and thirty of 4."""
    index = index_of([10, 30], [7, 4])
    seen = seeing(torch.linspace(0, 1, 40), index=index, seed=seed)
    return selector.checked(selector.decide(None, seen), seen).ids


@given(st.integers(1, 190), st.integers(0, 5))
def test_the_budget_of_tokens_is_reached_by_the_last_row(budget, seed):
    ids = decided(QuRating(by=LOSS, ratio=None, tokens=budget), seed=seed)
    total = int(torch.where(ids < 10, 7, 4).sum())
    assert budget <= total < budget + 7


def test_each_domain_keeps_its_part():
    ids = decided(QuRating(by=LOSS, temperature=0.0, per_domain=True, ratio=0.5))
    assert ids.tolist() == [*range(5, 10), *range(25, 40)]
    ids = decided(QuRating(by=LOSS, temperature=0.0, per_domain=True, ratio=None, count=6))
    assert ids.tolist() == [8, 9, 36, 37, 38, 39]  # 1.5 and 4.5: the remainders are equal, the first domain wins
    ids = decided(QuRating(by=LOSS, temperature=0.0, per_domain=True, ratio=None, tokens=19))
    assert ids.tolist() == [9, 37, 38, 39]  # a tenth of 70 and of 120 tokens
    assert apportioned(7, [1, 1, 1, 4]) == [1, 1, 1, 4]
    assert apportioned(2, [1, 1, 1]) == [1, 1, 0]


def test_refused():
    for settings, words in (
        ({"temperature": -1.0}, "temperature"),
        ({"polarity": 0}, "polarity"),
        ({"tokens": 5}, "set ratio and count to null"),
        ({"ratio": None}, "one of the two"),
        ({"ratio": None, "tokens": 0}, "1, 2, 3"),
    ):
        with pytest.raises(ConfigError, match=words):
            QuRating(by=LOSS, **settings)
    with pytest.raises(ConfigError, match="1 to 190"):
        decided(QuRating(by=LOSS, ratio=None, tokens=191))
    for bad, words in ((float("nan"), "NaN for 1 of 2"), (float("inf"), "infinite")):
        with pytest.raises(ConfigError, match=words):
            kept(QuRating(by=LOSS), [1.0, bad])
