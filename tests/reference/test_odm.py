"""ODM (arXiv 2312.02406): goldens of one policy, the reward update by hand, and the bandit's invariants."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.draw import row_probabilities
from regimen.core.strategy import Observation
from regimen.mixing.odm import Odm, OdmState, exploration, exponential_policy, linear_policy
from tests.reference.observations import LOSS, index_of, seeing

REWARDS = st.lists(st.floats(0, 1e5), min_size=2, max_size=24)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def after(step: int, ids: list[int], losses: list[float], index, total_steps: int = 1000) -> Observation:
    return seeing(losses, ids=ids, index=index, step=step, total_steps=total_steps)


def test_golden_policies():
    assert exploration(3, 99) == pytest.approx(0.06081966, abs=1e-8)
    assert exploration(3, 100) == pytest.approx(0.06051480, abs=1e-8)
    paper = exponential_policy(vector(6, 3, 0), 100)
    assert paper.tolist() == pytest.approx([0.38433855, 0.33033084, 0.28533060], abs=1e-7)
    linear = linear_policy(vector(2, 3, 1).exp(), 100)
    assert linear.tolist() == pytest.approx([0.26081419, 0.60498499, 0.13420083], abs=1e-7)


@given(REWARDS, st.integers(1, 10**6), st.randoms())
def test_invariants_of_a_policy(values, t, random):
    rewards, k = vector(*values), len(values)
    order = list(range(k))
    random.shuffle(order)
    for policy in (exponential_policy, linear_policy):
        pi = policy(rewards, t)
        assert float(pi.sum()) == pytest.approx(1, abs=1e-9)
        assert bool((pi >= exploration(k, t) - 1e-12).all())
        assert torch.allclose(policy(rewards[order], t), pi[order])
        if t <= k * math.log(k):
            assert pi.tolist() == pytest.approx([1 / k] * k)


def test_uniform_for_68_steps_with_the_22_domains_of_the_pile():
    assert 22 * exploration(22, 68) == 1
    assert 22 * exploration(22, 69) < 1


def test_rewards_that_overflow_a_naive_exponential():
    assert exponential_policy(vector(1e6, 0, 0), 10**4).isfinite().all()


def test_one_domain():
    for variant in ("paper", "repo_linear_ppl", "exp3"):
        mixer, index = Odm(variant=variant), index_of([5])
        seen = after(50, [0], [2.0], index)
        assert mixer.decide(mixer.observe(mixer.init(index), seen), seen).tolist() == [1.0]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("paper", (0.9 * 2 + 0.1 * 3.0 / 0.5, 1.0)),
        ("repo_linear_ppl", (0.9 * 2 + 0.1 * math.exp(3.0), 1.0)),
        ("exp3", (2 + 3.0 / 10 / 0.5, 1.0)),
    ],
)
def test_reward_update_by_hand(variant, expected):
    index = index_of([4, 4], 2)
    state = OdmState(vector(2, 1), vector(0.5, 0.5))
    rewards = Odm(variant=variant).observe(state, after(500, [0, 1], [2.0, 4.0], index)).rewards
    assert rewards.tolist() == pytest.approx(expected)


def test_the_domain_loss_is_a_token_mean():
    index = dataclasses.replace(index_of([2, 1, 1]), target_tokens=torch.tensor([1, 3, 5, 0], dtype=torch.int32))
    mixer = Odm(smoothing=0.0, initial="uniform")
    rewards = mixer.observe(mixer.init(index), after(500, [0, 1, 3], [2.0, 6.0, 0.0], index)).rewards
    # b is absent; c's only row has no target tokens, so it says nothing.
    assert rewards.tolist() == pytest.approx([3 * (2 * 1 + 6 * 3) / 4, 0, 0])


def test_the_estimate_is_unbiased_for_one_draw():
    index, losses = index_of([1, 1, 1]), [1.0, 2.0, 4.0]
    state = OdmState(vector(0, 0, 0), vector(0.5, 0.3, 0.2))
    mean = sum(
        state.policy[k] * Odm(smoothing=0.0).observe(state, after(500, [k], [losses[k]], index)).rewards
        for k in range(3)
    )
    assert mean.tolist() == pytest.approx(losses)


@pytest.mark.parametrize("variant", ["paper", "repo_linear_ppl", "exp3"])
def test_permuted_domains_get_permuted_shares(variant):
    order, losses, mixer = [2, 0, 1], [1.0, 4.0, 2.0], Odm(variant=variant, warmup=0.0)
    decided = []
    for places in ([0, 1, 2], order):
        index = index_of([[2, 5, 3][p] for p in places], [[7, 1, 3][p] for p in places])
        state = mixer.init(index)
        for step in range(1, 40):
            seen = after(step, index.offsets[:-1], [losses[p] for p in places], index)
            state = mixer.observe(state, seen)
            decision = mixer.checked(mixer.decide(state, seen), seen)
            state = mixer.advance(state, decision, seen)
        decided.append(decision)
    assert decided[0].tolist() != pytest.approx([1 / 3] * 3)
    assert decided[1].tolist() == pytest.approx(decided[0][order].tolist())


@pytest.mark.parametrize("variant", ["paper", "repo_linear_ppl", "exp3"])
def test_a_loss_that_is_not_a_number_or_too_large_leaves_the_reward(variant):
    index, mixer = index_of([2, 2, 2]), Odm(variant=variant)
    state = OdmState(vector(1, 2, 3), vector(0.2, 0.3, 0.5))
    rewards = mixer.observe(state, after(500, [0, 1, 2], [1.0, math.nan, math.inf], index)).rewards
    assert rewards[1:].tolist() == [2, 3]
    rewards = mixer.observe(state, after(500, [0, 2], [math.nan, 800.0], index)).rewards
    assert rewards.isfinite().all()
    assert float(rewards[0]) == 1


@pytest.mark.parametrize("variant", ["paper", "repo_linear_ppl", "exp3"])
@pytest.mark.parametrize("initial", ["natural", "uniform"])
def test_a_domain_without_rows_is_no_arm(variant, initial):
    index, mixer = index_of([4, 0, 4]), Odm(variant=variant, initial=initial, warmup=0.1)
    state = mixer.init(index)
    two = Odm(variant=variant, initial=initial, warmup=0.1)
    other, smaller = index_of([4, 4]), two.init(index_of([4, 4]))
    for step in range(1, 40):
        seen, less = after(step, [0, 4], [2.0, 5.0], index), after(step, [0, 4], [2.0, 5.0], other)
        state, smaller = mixer.observe(state, seen), two.observe(smaller, less)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        expected = two.checked(two.decide(smaller, less), less)
        assert decision.tolist() == pytest.approx([float(expected[0]), 0, float(expected[1])])
        state, smaller = mixer.advance(state, decision, seen), two.advance(smaller, expected, less)


def test_warm_up_keeps_the_initial_mixture_and_earns_nothing():
    index = index_of([6, 2], [1, 9])
    mixer = Odm(warmup=0.1)
    state = mixer.init(index)
    for step in range(1, 101):
        # The batch of step s was decided on when s - 1 steps were done: that of step 100 is the last of the warm-up.
        state = mixer.observe(state, after(step, [0, 6], [1.0, 5.0], index))
        assert state.rewards.tolist() == [0, 0]
        if step < 100:
            shares = mixer.decide(state, after(step, [0, 6], [1.0, 5.0], index))
            assert torch.allclose(shares, index.natural())
    assert mixer.decide(state, after(100, [0], [1.0], index)).tolist() != index.natural().tolist()
    assert mixer.observe(state, after(101, [0, 6], [1.0, 5.0], index)).rewards.min() > 0


def test_initial_mixtures():
    index = index_of([6, 2])
    seen = seeing(index=index)
    assert Odm().decide(Odm().init(index), seen).tolist() == pytest.approx([0.75, 0.25])
    uniform = Odm(initial="uniform")
    assert uniform.decide(uniform.init(index), seen).tolist() == pytest.approx([0.5, 0.5])


def test_rows_of_any_length_are_drawn_with_the_policy():
    index = index_of([4, 4], [10, 90])
    mixer = Odm(warmup=0.0)
    seen = after(5000, [], [], index, total_steps=10000)
    state = OdmState(vector(900, 0), vector(0.5, 0.5))
    decision = mixer.checked(mixer.decide(state, seen), seen)
    policy = exponential_policy(state.rewards, 5001)
    assert row_probabilities(decision, index.mean_tokens()).tolist() == pytest.approx(policy.tolist())
    assert mixer.advance(state, decision, seen).policy.tolist() == pytest.approx(policy.tolist())


@pytest.mark.parametrize("variant", ["paper", "repo_linear_ppl", "exp3"])
def test_a_run_comes_to_prefer_the_domain_with_the_high_loss(variant):
    index, mixer = index_of([1, 1, 1]), Odm(variant=variant, draw_groups=1)
    state, losses, rng = mixer.init(index), [1.0, 2.0, 6.0], torch.Generator().manual_seed(0)
    for step in range(1500):
        seen = after(step, [], [], index, total_steps=1500)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        state = mixer.advance(state, decision, seen)
        k = int(torch.multinomial(state.policy, 1, generator=rng))
        state = mixer.observe(state, after(step + 1, [k], [losses[k]], index, total_steps=1500))
    assert int(state.policy.argmax()) == 2
    assert float(state.policy.sum()) == pytest.approx(1)


def test_watches_the_training_loss():
    assert Odm().watches() == (LOSS,)
    assert Odm().needs() == ()
