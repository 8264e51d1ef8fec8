"""Velocitune (arXiv 2411.14318): the chosen rule by hand, and that its two descriptions are the same rule."""

from __future__ import annotations

import numpy as np
import pytest

from regimen.core.errors import ConfigError
from regimen.mixing.velocitune import Velocitune, part_left
from regimen.signals.domains import ValidationLoss
from tests.reference.observations import index_of, seeing

TARGETS = {"a": 2.0, "b": 1.0, "c": 3.0}
TARGET = np.array(list(TARGETS.values()))
LOSSES = np.array([[4.0, 3.0, 3.5], [3.0, 2.5, 3.1], [2.1, 2.6, 2.9], [1.9, 1.0, 3.6]])


def run_of(mixer: Velocitune, losses, index=None):
    """Decided shares, and the last state."""
    index = index or index_of([2, 3, 5])
    state, made = mixer.init(index), []
    for step, row in enumerate(losses):
        seen = seeing(row, ids=[], index=index, by=ValidationLoss(max_rows=mixer.max_rows), step=step)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        state = mixer.advance(state, decision, seen)
        made.append(decision.tolist())
    return made, state


@pytest.mark.parametrize("initial", ["natural", "uniform"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_a_run_by_numpy(initial, eta):
    weights = np.array([0.2, 0.3, 0.5]) if initial == "natural" else np.full(3, 1 / 3)
    made, _ = run_of(Velocitune(targets=TARGETS, initial=initial, eta=eta), LOSSES)
    assert made[0] == pytest.approx(weights.tolist())
    for row, shares in zip(LOSSES[1:], made[1:], strict=True):
        left = np.clip((row - TARGET) / (LOSSES[0] - TARGET), 0, 1)
        weights = weights * np.exp(eta * left)
        weights /= weights.sum()
        assert shares == pytest.approx(weights.tolist())


def test_the_part_that_is_done_with_a_negative_sign_gives_the_same_shares():
    weights = np.array([0.2, 0.3, 0.5])
    for row, shares in zip(LOSSES[1:], run_of(Velocitune(targets=TARGETS), LOSSES)[0][1:], strict=True):
        done = np.clip((LOSSES[0] - row) / (LOSSES[0] - TARGET), 0, 1)
        weights = weights * np.exp(-done)
        weights /= weights.sum()
        assert shares == pytest.approx(weights.tolist())


def test_the_slower_of_two_domains_gains():
    made, _ = run_of(Velocitune(targets={"a": 1, "b": 1}), [[3, 9], [2.5, 3]], index_of([1, 1]))
    assert made[1][0] > 0.5 > made[1][1]


def test_the_part_that_is_left():
    vectors = [np.array(v, dtype=float) for v in ([4, 2, 5, 1, 2], [4, 4, 4, 1, 3], [2, 2, 2, 1, 3.5])]
    import torch

    loss, first, target = map(torch.from_numpy, vectors)
    # Nothing done; all done; further away than at first; at the target from the start; below it from the start.
    assert part_left(loss, first=first, target=target).tolist() == [1, 0, 1, 0, 0]


def test_it_hands_on_the_mean_of_its_shares():
    mixer = Velocitune(targets=TARGETS)
    made, state = run_of(mixer, LOSSES)
    mixture = mixer.gives(state, index_of([2, 3, 5]))["mixture"]
    assert list(mixture.values()) == pytest.approx(np.mean(made, 0).tolist())
    assert mixer.gives(mixer.init(index_of([2, 3, 5])), index_of([2, 3, 5])) == {}


def test_permuted_domains_get_permuted_shares():
    order = [2, 0, 1]
    plain, _ = run_of(Velocitune(targets=TARGETS), LOSSES)
    targets = {name: float(TARGET[place]) for name, place in zip("abc", order, strict=True)}
    permuted, _ = run_of(Velocitune(targets=targets), LOSSES[:, order], index_of([5, 2, 3]))
    for p, q in zip(plain, permuted, strict=True):
        assert q == pytest.approx([p[place] for place in order])


def test_empty_domains_and_a_single_domain():
    for shares in run_of(Velocitune(targets=TARGETS, initial="uniform"), LOSSES, index_of([2, 0, 5]))[0]:
        assert shares[1] == 0
        assert sum(shares) == pytest.approx(1)
    assert run_of(Velocitune(targets={"a": 1}), [[3], [2]], index_of([4]))[0][1] == [1]


def test_a_loss_that_is_not_a_number_is_refused():
    with pytest.raises(ConfigError, match="left the simplex"):
        run_of(Velocitune(targets=TARGETS), [[4, 4, 4], [float("nan"), 1, 1]])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no target losses"),
        ({"targets": {}}, "maps domains to losses"),
        ({"targets": {"a": None}}, r"targets\.a is not a loss"),
        ({"targets": TARGETS, "initial": "pile"}, "natural, uniform"),
        ({"targets": TARGETS, "eta": -1}, "eta"),
        ({"targets": TARGETS, "max_rows": 0}, "max_rows"),
        ({"targets": TARGETS, "draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Velocitune(**settings)


@pytest.mark.parametrize(
    ("targets", "words"),
    [({"a": 1, "b": 1}, r"does not name 1 of 3[\s\S]*c"), ({**TARGETS, "d": 1}, "does not have")],
)
def test_what_does_not_fit_the_pool_is_refused_before_training(targets, words):
    with pytest.raises(ConfigError, match=words):
        Velocitune(targets=targets).init(index_of([1, 1, 1]))
