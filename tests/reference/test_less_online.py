"""Online LESS (DataFlex): the model as it is now, eps outside the square root, the mean over all target rows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from regimen.core.settings import conf_dir
from regimen.core.strategy import Observation
from regimen.runs.strategies import make_strategies
from regimen.selection.targeted import Targeted
from regimen.signals.influence import Influence
from tests.reference.observations import seeing
from tests.reference.test_less import POOL, TARGETS, cosine, meter
from tests.support.exact_meter import ExactMeter, flat_gradient, summed_loss


def settings() -> dict[str, Any]:
    loaded = yaml.safe_load((conf_dir() / "method" / "less_online.yaml").read_text())["strategies"]
    loaded["less_online"]["by"]["sketch"]["kind"] = "whole"
    return loaded


def selector() -> Targeted:
    (placed,) = make_strategies(settings())
    assert isinstance(placed.strategy, Targeted)
    return placed.strategy


def seen_by(by: Influence, at: ExactMeter) -> Observation:
    values = by.measure(at, torch.arange(len(POOL)))
    return replace(seeing(values, by=by), target=at.target.index)


def written_out(at: ExactMeter) -> list[float]:
    """Mean over the target rows of the cosine between a row's step of Adam and the target's gradient."""
    model, first, second = at.state
    targets = [example for rows in TARGETS.values() for example in rows]
    gradients = [flat_gradient(model, summed_loss(model, t) / t.learnt.sum()).tolist() for t in targets]
    out = []
    for example in POOL[:4]:  # the fifth has no target tokens
        g = flat_gradient(model, summed_loss(model, example) / example.learnt.sum())
        step = (0.9 * first + 0.1 * g) / ((0.999 * second + 0.001 * g**2).sqrt() + 1e-8)
        out.append(sum(cosine(step.tolist(), target) for target in gradients) / 3)
    return [*out, 0.0]


def test_keeps_the_best_under_the_model_as_it_is():
    at, by = meter(), selector().needs()[0]
    assert isinstance(by, Influence)
    for name in ("a", "b"):
        now = replace(at, state=at.others[name])
        seen, scores = seen_by(by, now), written_out(now)
        assert seen.values[by].mean(1).tolist() == pytest.approx(scores, abs=1e-6)
        best = sorted(range(5), key=lambda i: -scores[i])
        kept = replace(selector(), ratio=None, count=3).decide(None, seen)
        assert kept.tolist() == best[:3]


def test_follows_the_model_in_training():
    """Nothing is remembered between two decisions."""
    at, by = meter(), selector().needs()[0]
    before = by.measure(at, torch.arange(5))
    state = copy.deepcopy(at.state)
    with torch.no_grad():
        for parameter in at.state.model.parameters():
            parameter.mul_(0.5)
    after = by.measure(at, torch.arange(5))
    assert float((after - before)[:4].abs().max()) > 1e-3
    assert torch.equal(by.measure(replace(at, state=state), torch.arange(5)), before)


def test_never_measures_untrained_adapters():
    """Their gradients are 0 before the first step; by default the first decision comes after some."""
    (placed,) = make_strategies(settings())
    assert placed.trigger is not None
    assert not placed.trigger.fires(0, 1000) and placed.trigger.count(1000) > 1


def test_one_checkpoint_is_paid_for():
    (by,) = selector().needs()
    assert (by.passes(), by.models()) == (3, (None,))
