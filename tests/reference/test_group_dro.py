"""Group DRO (arXiv 1911.08731): the equilibrium of two quadratics, absent domains, and its options by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.signals.loss import Loss
from regimen.weighting.group_dro import GroupDro, GroupDroState
from tests.reference.observations import index_of, observing, weighing

POOL = index_of([10, 20, 70])


def step(weighter: GroupDro, state: GroupDroState, losses: Tensor, domain: list[int], **fields: object):
    """Weights of a batch, and the state after it."""
    batch = weighing(domain, **fields)  # type: ignore[arg-type]
    weights = weighter.checked(weighter.weigh(state, losses, batch), losses)
    return weights, weighter.observe(state, observing(batch, {Loss(): losses}))


@pytest.mark.parametrize("reduction", ["token_mean", "sample_mean"])
def test_equilibrium(reduction: str) -> None:
    """.5 (t - 0)^2 and 2 (t - 1)^2 are equal, 2/9, at t = 2/3, where their slopes 2/3 and -4/3 need q = (2/3, 1/3)."""
    weighter = GroupDro(step_size=0.1, reduction=reduction)  # type: ignore[arg-type]
    theta, state = 0.0, weighter.init(index_of([1, 1]))
    for _ in range(3000):
        losses = torch.tensor([0.5 * theta**2, 2 * (theta - 1) ** 2], dtype=torch.float64)
        weights, state = step(weighter, state, losses, [0, 1])
        slopes = torch.tensor([theta, 4 * (theta - 1)], dtype=torch.float64)
        slope = float((weights * slopes).sum()) / 2  # of sum w l / N
        theta -= 0.1 * slope
    assert theta == pytest.approx(2 / 3, abs=1e-9)
    assert state.q.tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-9)
    assert losses.tolist() == pytest.approx([2 / 9] * 2, abs=1e-9)


def test_weights_give_the_weighted_domain_means() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 0.0, 3.0], dtype=torch.float64)
    tokens, domain = torch.tensor([3, 1, 2, 0, 4]), [0, 0, 2, 2, 2]
    for reduction in ("token_mean", "sample_mean"):
        weighter = GroupDro(step_size=0.3, reduction=reduction)  # type: ignore[arg-type]
        state = GroupDroState(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.full((3,), torch.nan))
        weights, after = step(weighter, state, losses, domain, tokens=tokens, index=POOL)
        if reduction == "token_mean":
            means = [(3 * 1 + 1 * 2) / 4, (2 * 4 + 4 * 3) / 6]
            objective = float((weights * losses * tokens).sum() / tokens.sum())
        else:
            means = [1.5, 3.5]
            objective = float((weights * losses).mean())
        raised = [0.5 * math.exp(0.3 * means[0]), 0.2 * math.exp(0.3 * means[1])]
        q = [0.7 * r / sum(raised) for r in raised]
        assert after.q.tolist() == pytest.approx([q[0], 0.3, q[1]]), "an absent domain keeps its q"
        assert objective == pytest.approx(q[0] * means[0] + q[1] * means[1])
        assert weights[3] == 0


def test_one_domain_alone_moves_nothing() -> None:
    weighter = GroupDro(step_size=5.0)
    state = weighter.init(POOL)
    weights, after = step(weighter, state, torch.tensor([9.0, 1.0]), [1, 1], index=POOL)
    assert after.q.tolist() == pytest.approx(state.q.tolist(), abs=1e-15)
    assert weights.tolist() == pytest.approx([1 / 3] * 2)
    assert bool(after.average[[0, 2]].isnan().all())
    _, empty = step(weighter, after, torch.tensor([0.0]), [0], tokens=[0], index=POOL)
    assert empty.q.tolist() == after.q.tolist()


def test_adjustment_and_normalisation() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    adjusted = [loss + 4 / math.sqrt(n) for loss, n in zip([1, 2, 3], [10, 20, 70], strict=True)]
    for normalise in (False, True):
        weighter = GroupDro(step_size=0.5, adjustment=4.0, normalise=normalise)
        _, after = step(weighter, weighter.init(POOL), losses, [0, 1, 2], index=POOL)
        scale = sum(adjusted) if normalise else 1.0
        raised = [math.exp(0.5 * a / scale) for a in adjusted]
        assert after.q.tolist() == pytest.approx([r / sum(raised) for r in raised])
        assert after.average.tolist() == losses.tolist(), "the adjustment is no loss"


def test_cvar_takes_the_worst_part_of_the_pool() -> None:
    weighter = GroupDro(rule="cvar", fraction=0.25, gamma=0.5)
    losses = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    weights, state = step(weighter, weighter.init(POOL), losses, [0, 1, 2], index=POOL)
    assert (weights / 3).tolist() == pytest.approx([0.1 / 0.25, 0.15 / 0.25, 0])
    _, state = step(weighter, state, torch.tensor([9.0]), [2], index=POOL)
    assert state.average.tolist() == [3, 2, 5]
    assert weighter.shows(state, POOL)["q"] == {"a": 0, "b": 0, "c": 1}
    everyone = GroupDro(rule="cvar", fraction=1.0)
    weights, _ = step(everyone, everyone.init(POOL), losses, [0, 1, 2], index=POOL)
    assert (weights / 3).tolist() == pytest.approx([0.1, 0.2, 0.7])


def test_the_excess_drives_it_where_there_is_a_reference() -> None:
    weighter = GroupDro(step_size=1.0, reference="x")
    batch = weighing([0, 1], values={weighter.excess: torch.tensor([0.0, 0.5], dtype=torch.float64)})
    losses = torch.tensor([8.0, 1.0])  # high entropy, and no excess
    weights = weighter.weigh(weighter.init(index_of([1, 1])), losses, batch)
    assert weights.tolist() == pytest.approx([2 / (1 + math.exp(0.5)), 2 / (1 + math.exp(-0.5))])


def test_large_losses_do_not_overflow() -> None:
    weighter = GroupDro(step_size=1e4)
    weights, _ = step(weighter, weighter.init(POOL), torch.tensor([900.0, 901.0]), [0, 1], index=POOL)
    assert weights.tolist() == pytest.approx([0, 4 / 3])


@pytest.mark.parametrize(
    ("field", "value"),
    [("step_size", -1.0), ("adjustment", float("nan")), ("fraction", 0.0), ("gamma", 1.5), ("rule", "max")],
)
def test_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        GroupDro(**{field: value})  # type: ignore[arg-type]
