"""The model that learns rows' scores: its numbers, its course, and what goes on after a kill."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from regimen.core.errors import ConfigError
from regimen.core.ranks import mean_rank, spearman
from regimen.core.scoring import Scorer
from regimen.training.cost import body_flops, forward_flops
from regimen.training.row_scorer import learning_rate, standard
from tests.support.gradients import gpt2, llama, qwen2

FEW = Scorer(model="own", rows=40, epochs=3, batch_rows=8)


def test_rank_correlation_is_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    for span in (3, 10, 1000):  # many ties, some, few
        a, b = torch.randint(span, (2, 50), generator=draw).double()
        assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    assert mean_rank(torch.tensor([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]
    assert spearman(torch.zeros(4), torch.arange(4)) == 0.0


def test_scores_are_standardised_and_cut() -> None:
    scores = torch.tensor([0.0] * 99 + [100.0]).double()
    found = standard(scores, 3.0)
    assert float(found.max()) == 3.0 and float(found[0]) == pytest.approx(-1 / math.sqrt(99))
    for wrong in (torch.ones(4), torch.tensor([1.0, math.nan])):
        with pytest.raises(ConfigError, match="model=none"):
            standard(wrong, 3.0)


def test_learning_rate_rises_and_falls_on_a_cosine() -> None:
    how = Scorer(lr=1.0, final_lr=0.1, warmup=4)
    found = [learning_rate(how, step, 12) for step in range(13)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0] and found[4] == 1.0
    assert found[8] == pytest.approx(0.55) and found[12] == pytest.approx(0.1)


def test_which_rows_are_measured_held_out_and_learnt_from() -> None:
    ids = torch.arange(100, 200)
    places = FEW.sample(ids)
    assert len(places) == 40 and torch.equal(places, places.unique()) and torch.equal(places, FEW.sample(ids))
    assert not torch.equal(places, Scorer(model="own", rows=40, seed=1).sample(ids))
    held, learnt = FEW.split(40)
    assert len(held) == 4 and sorted([*held.tolist(), *learnt.tolist()]) == list(range(40))
    assert not torch.equal(FEW.order(36, 0), FEW.order(36, 1))
    assert sorted(FEW.order(36, 1).tolist()) == list(range(36))


def test_whether_a_scorer_learns_and_what_it_costs() -> None:
    assert FEW.learns(41) and not FEW.learns(40) and not Scorer(rows=40).learns(41)
    assert FEW.passes(40, 7.0) == 280  # all are measured
    assert FEW.passes(1000, 7.0) == 40 * 7 + 3 * (3 * 36 + 4) + 1000
    assert FEW.advice(1000, of="x") is None and "no scorer is trained" in str(FEW.advice(40, of="x"))
    assert Scorer().advice(50_000, of="x") is None and "scorer.model=own" in str(Scorer().advice(50_001, of="x"))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"model": ""}, {"rows": 0}, {"held_out": 0.0}, {"held_out": 1.0}, {"lr": 0.0}, {"warmup": -1}),
        {"model": "own", "rows": 10},  # one row held out has no rank correlation
    ],
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Scorer(**wrong)


def test_flops_up_to_the_last_hidden_states() -> None:
    """By hand: the head is one product of width and vocabulary per token."""
    for make in (gpt2, llama, qwen2):
        model = make()
        head = 2 * model.config.hidden_size * model.config.vocab_size
        assert body_flops(model, 16) == pytest.approx(forward_flops(model, 16) - head)
