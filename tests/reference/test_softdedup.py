"""SoftDedup (arXiv 2407.06654): duplicated text is drawn less often, the more often it is there."""

from __future__ import annotations

import random

import pytest
import torch
import yaml

from regimen.core.errors import ConfigError
from regimen.core.settings import conf_dir
from regimen.selection.softdedup import SoftDedup, segment_weights
from regimen.signals.kneser_ney import NgramPerplexity
from tests.reference.observations import seeing
from tests.reference.texts import Texts

TOKENS, WORDS = NgramPerplexity(n=4, of="tokens", folds=1), NgramPerplexity(folds=1)
BY = WORDS


class Tokenised(Texts):
    """Rows whose tokens are numbers of their words."""

    def tokens(self, ids: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor([int(word[1:]) for word in text.split()]) for text in self.texts(ids)]


def documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(300)]
    frequency = [1 / (1 + i) for i in range(300)]  # Zipf's, so that discounts can be estimated
    return [" ".join(rng.choices(words, frequency, k=40)) for _ in range(count)]


def weights_of(texts: list[str], by: NgramPerplexity = BY) -> torch.Tensor:
    selector = SoftDedup(by=by)
    seen = Tokenised(texts).seen(by)
    chosen = selector.checked(selector.decide(None, seen), seen)
    assert chosen.ids.tolist() == list(range(len(texts)))
    assert chosen.sampling_weight is not None
    return chosen.sampling_weight


@pytest.mark.parametrize("by", [TOKENS, WORDS])
def test_a_hundred_copies_among_a_thousand_are_drawn_a_third_as_often(by: NgramPerplexity) -> None:
    texts = documents(1001)
    weights = weights_of([texts[0]] * 100 + texts[1:], by)
    assert float(weights.mean()) == pytest.approx(1)
    assert weights[:100].unique().tolist() == [float(weights.min())], "all copies are in the lowest segment"
    assert float(weights[:100].sum()) < 100 / 3  # the expected draws of a pass, 100 without weights
    assert float(weights.max() / weights.min()) <= 10 * (1 + 1e-9)


@pytest.mark.parametrize("by", [TOKENS, WORDS])
def test_more_copies_are_more_common(by: NgramPerplexity) -> None:
    texts = documents(300, seed=1)
    perplexity, weight = [], []
    for copies in (1, 2, 4, 8, 16):
        rows = Tokenised([texts[0]] * copies + texts[1:])
        perplexity.append(float(by.measure(rows, rows.ids)[0]))
        weights = weights_of(rows.rows, by)
        weight.append(float(weights[0] / weights[copies:].mean()))
    assert perplexity == sorted(perplexity, reverse=True)
    assert weight == sorted(weight, reverse=True) and weight[-1] < weight[0] / 5


def test_tokens_and_words_are_counted_alike() -> None:
    """Where a token is a word; and the method's file counts 4-grams of tokens, as the paper does."""
    rows = Tokenised(documents(80))
    for n in (2, 4):
        words, tokens = (NgramPerplexity(n=n, of=of, folds=1).measure(rows, rows.ids) for of in ("words", "tokens"))
        torch.testing.assert_close(words, tokens, rtol=1e-12, atol=0)
    settings = yaml.safe_load((conf_dir() / "method" / "softdedup.yaml").read_text())["strategies"]["softdedup"]["by"]
    settings.pop("_target_")
    assert NgramPerplexity(**settings) == TOKENS


def test_segments_by_hand() -> None:
    p = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    raw = torch.tensor([1 / 0.15, 1 / 0.15, 1 / 0.6, 1 / 0.6], dtype=torch.float64)
    torch.testing.assert_close(segment_weights(p, 2, None), raw / raw.mean())
    each = 1 / p
    torch.testing.assert_close(segment_weights(p, 4, None), each / each.mean())
    torch.testing.assert_close(segment_weights(p, 9, None), each / each.mean())
    cut = each.clamp(max=2 / 0.8)
    torch.testing.assert_close(segment_weights(p, 4, 2.0), cut / cut.mean())
    assert segment_weights(p, 1, None).tolist() == [1] * 4
    tied = torch.tensor([0.5, 0.1, 0.5, 0.5], dtype=torch.float64)
    assert segment_weights(tied, 4, None).unique().numel() == 2
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(segment_weights(p[order], 2, 3.0), segment_weights(p, 2, 3.0)[order])


def test_refused() -> None:
    for settings, words in (({"segments": 0}, "segments"), ({"clip": 0.5}, "clip"), ({"clip": float("nan")}, "clip")):
        with pytest.raises(ConfigError, match=words):
            SoftDedup(by=BY, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no perplexity"):
        SoftDedup(by=BY).decide(None, seeing([1.0, 0.0], by=BY))
    with pytest.raises(ConfigError, match="NaN"):
        SoftDedup(by=BY).decide(None, seeing([1.0, float("nan")], by=BY))
