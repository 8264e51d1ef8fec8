"""Dynamic batch loading (Sheared-LLaMA, arXiv 2310.06694): its rule by hand and against the released code's options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.mixing.sheared import Sheared
from regimen.signals.domains import ValidationLoss
from tests.reference.observations import index_of, seeing

REFERENCE = {"a": 2.0, "b": 1.5, "c": 3.0}
LOSSES = np.array([[4.0, 3.0, 3.5], [3.0, 2.0, 2.9], [2.5, 1.4, 3.2], [1.9, 1.6, 2.0]])


def run_of(mixer: Sheared, losses, index=None) -> list[list[float]]:
    index = index or index_of([2, 3, 5])
    state, made = mixer.init(index), []
    for step, row in enumerate(losses):
        seen = seeing(row, ids=[], index=index, by=ValidationLoss(max_rows=mixer.max_rows), step=step)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        state = mixer.advance(state, decision, seen)
        made.append(decision.tolist())
    return made


@pytest.mark.parametrize("initial", ["natural", "uniform"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_the_papers_rule(initial, eta):
    weights = np.array([0.2, 0.3, 0.5]) if initial == "natural" else np.full(3, 1 / 3)
    made = run_of(Sheared(reference=REFERENCE, initial=initial, eta=eta), LOSSES)
    assert made[0] == pytest.approx(weights.tolist())  # the first decision changes nothing
    for row, shares in zip(LOSSES[1:], made[1:], strict=True):
        weights = weights * np.exp(eta * np.maximum(row - [2.0, 1.5, 3.0], 0))
        weights /= weights.sum()
        assert shares == pytest.approx(weights.tolist())


def test_the_released_codes_rule():
    weights = np.array([0.2, 0.3, 0.5])
    made = run_of(Sheared(reference=REFERENCE, excess="signed", smoothing=1e-4), LOSSES)
    for row, shares in zip(LOSSES[1:], made[1:], strict=True):
        raised = np.exp(np.log(weights) + row - [2.0, 1.5, 3.0])
        weights = (1 - 1e-4) * raised / raised.sum() + 1e-4 / 3
        assert shares == pytest.approx(weights.tolist())


def test_domains_at_their_reference_stay():
    made = run_of(Sheared(reference=REFERENCE), [[9, 9, 9], [1, 1, 1], [2, 1.5, 3]])
    assert made[1] == made[2] == pytest.approx([0.2, 0.3, 0.5])


def test_many_steps_leave_no_domain_beyond_recovery():
    falling = [[9, 1, 1]] * 2000 + [[1, 9, 1]] * 4000
    mixer = Sheared(reference=REFERENCE)
    assert run_of(mixer, falling)[-1] == pytest.approx([0, 1, 0], abs=1e-9)


def test_permuted_domains_get_permuted_shares():
    order = [2, 0, 1]
    plain = run_of(Sheared(reference=REFERENCE), LOSSES)
    reference = {name: REFERENCE["abc"[place]] for name, place in zip("abc", order, strict=True)}
    permuted = run_of(Sheared(reference=reference), LOSSES[:, order], index_of([5, 2, 3]))
    for p, q in zip(plain, permuted, strict=True):
        assert q == pytest.approx([p[place] for place in order])


def test_empty_domains_and_a_single_domain():
    for excess in ("clipped", "signed"):
        mixer = Sheared(reference=REFERENCE, initial="uniform", excess=excess, smoothing=0.1)
        for shares in run_of(mixer, LOSSES, index_of([2, 0, 5])):
            assert shares[1] == 0
            assert sum(shares) == pytest.approx(1)
        assert run_of(Sheared(reference={"a": 1}, excess=excess), [[3], [2]], index_of([4]))[1] == [1]


def test_a_domain_without_validation_rows_stays():
    """Its loss is measured as 0."""
    made = run_of(Sheared(reference=REFERENCE, excess="signed"), [[1, 1, 0], [2, 1.5, 0]])
    assert made[1] == pytest.approx(made[0])


def test_a_loss_that_is_not_a_number_is_refused():
    with pytest.raises(ConfigError, match="left the simplex"):
        run_of(Sheared(reference=REFERENCE), [[1, 1, 1], [float("nan"), 1, 1]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no reference losses"),
        ({"reference": {}}, "maps domains to losses"),
        ({"reference": 2.0}, "maps domains to losses"),
        ({"reference": {"a": "low"}}, r"reference\.a is not a loss"),
        ({"reference": {"a": -1}}, r"reference\.a is not a loss"),
        ({"reference": REFERENCE, "initial": "pile"}, "natural, uniform"),
        ({"reference": REFERENCE, "excess": "token"}, "clipped, signed"),
        ({"reference": REFERENCE, "eta": float("inf")}, "eta"),
        ({"reference": REFERENCE, "smoothing": 2}, "smoothing"),
        ({"reference": REFERENCE, "max_rows": 0}, "max_rows"),
        ({"reference": REFERENCE, "draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Sheared(**settings)


@pytest.mark.parametrize(
    ("reference", "words"),
    [({"a": 1, "b": 1}, r"does not name 1 of 3[\s\S]*c"), ({**REFERENCE, "d": 1}, "does not have")],
)
def test_what_does_not_fit_the_pool_is_refused_before_training(reference, words):
    with pytest.raises(ConfigError, match=words):
        Sheared(reference=reference).init(index_of([1, 1, 1]))


def test_needs_the_validation_losses():
    assert Sheared(reference=REFERENCE, max_rows=2).needs() == (ValidationLoss(max_rows=2),)
    assert torch.is_tensor(Sheared(reference=REFERENCE).init(index_of([1, 1, 1])).log_weights)
