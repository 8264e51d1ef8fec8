"""Loss, perplexity and bits per byte against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from regimen.evaluation.perplexity import by_domain


def scores(domain: list[int], loss: list[float], tokens: list[float], text_bytes: list[float]) -> dict:
    columns = [torch.tensor(x, dtype=torch.float64) for x in (loss, tokens, loss, text_bytes)]
    named = dict(zip(("loss", "tokens", "text_loss", "text_bytes"), columns, strict=True))
    return by_domain(("a", "b"), torch.tensor(domain), **named)


def test_a_uniform_model_has_log_v_per_token() -> None:
    v, tokens, size = 50, 120.0, 300.0
    a = scores([0], [tokens * math.log(v)], [tokens], [size])["domains"]["a"]
    assert a["perplexity"] == pytest.approx(v)
    assert a["bits_per_byte"] == pytest.approx(math.log2(v) * tokens / size)


def test_bytes_as_tokens_give_bits_per_byte_of_the_loss() -> None:
    a = scores([0], [13.0], [10.0], [10.0])["domains"]["a"]
    assert a["bits_per_byte"] == pytest.approx(a["loss"] / math.log(2))


def test_micro_pools_tokens_and_macro_weighs_domains_alike() -> None:
    told = scores([0, 0, 1], [2.0, 4.0, 30.0], [1.0, 2.0, 10.0], [4.0, 8.0, 20.0])
    assert told["domains"]["a"]["loss"] == pytest.approx(2.0)
    assert told["domains"]["b"]["loss"] == pytest.approx(3.0)
    assert told["micro"]["loss"] == pytest.approx(36 / 13)
    assert told["macro"]["loss"] == pytest.approx(2.5)
    assert told["macro"]["perplexity"] == pytest.approx(math.exp(2.5))
    assert told["macro"]["bits_per_byte"] == pytest.approx((6 / 12 + 30 / 20) / 2 / math.log(2))


def test_a_domain_without_rows_is_not_in_the_averages() -> None:
    told = scores([0], [2.0], [1.0], [1.0])
    assert math.isnan(told["domains"]["b"]["loss"])
    assert told["macro"]["loss"] == pytest.approx(2.0)
