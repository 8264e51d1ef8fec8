"""DoReMi's proxy (arXiv 2305.10429) against closed forms and a NumPy reference of Group DRO."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.mixing.doremi import DoremiProxy, ascend
from tests.reference.observations import index_of, observing, weighing


def proxy(**fields: object) -> DoremiProxy:
    return DoremiProxy(**{"reference": "outputs/run", **fields})  # type: ignore[arg-type]


def step(strategy: DoremiProxy, state, domain, excess, tokens, index):
    """Weights of the batch and the state after it."""
    values = {strategy.excess: torch.tensor(excess, dtype=torch.float64)}
    batch = weighing(domain, tokens=tokens, values=values, index=index)
    losses = torch.ones(len(domain))
    return strategy.weigh(state, losses, batch), strategy.observe(state, observing(batch))


def test_one_step_golden():
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    got = ascend(uniform, torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64), eta=1.0, smoothing=1e-3)
    assert got.tolist() == pytest.approx([0.42591984, 0.31561557, 0.25846460], abs=1e-8)


def test_fixed_point_golden():
    """Constant excess (1, 0): the root of a quadratic."""
    alpha = torch.full((2,), 0.5, dtype=torch.float64)
    for _ in range(2000):
        alpha = ascend(alpha, torch.tensor([1.0, 0.0], dtype=torch.float64), eta=1.0, smoothing=1e-3)
    e, c = math.e, 1e-3
    roots = np.roots([e - 1, 1 - (1 - c) * e - c / 2 * (e - 1), -c / 2])
    assert float(alpha[0]) == pytest.approx(0.9992092419300527, abs=1e-12)
    assert float(alpha[0]) == pytest.approx(max(roots), abs=1e-12)


@given(st.lists(st.floats(0, 50), min_size=2, max_size=6), st.floats(0, 5), st.floats(0.001, 1))
def test_simplex_floor_and_permutation(score, eta, smoothing):
    k = len(score)
    uniform = torch.full((k,), 1 / k, dtype=torch.float64)
    values = torch.tensor(score, dtype=torch.float64)
    got = ascend(uniform, values, eta=eta, smoothing=smoothing)
    assert float(got.sum()) == pytest.approx(1)
    assert float(got.min()) >= smoothing / k - 1e-12
    assert torch.allclose(ascend(uniform, values.flip(0), eta=eta, smoothing=smoothing).flip(0), got)
    assert torch.allclose(ascend(uniform, torch.full_like(values, 3.0), eta=eta, smoothing=smoothing), uniform)


def test_a_huge_excess_does_not_overflow():
    got = ascend(torch.tensor([0.5, 0.5]).double(), torch.tensor([1e4, 0.0]).double(), eta=1.0, smoothing=1e-3)
    assert got.tolist() == pytest.approx([0.9995, 0.0005])


def test_clipping_of_tokens_and_of_domains():
    """Token excesses +1 and -1: 1/2 where each token is clipped, 0 where the mean is."""
    losses, reference = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    targets = torch.tensor([[True, True]])
    index = index_of([1])
    for clip, expected in (("token", 0.5), ("domain", 0.0)):
        strategy = proxy(excess_clip=clip)
        excess = strategy.excess.of_tokens(losses, reference, targets)
        _, state = step(strategy, strategy.init(index), [0], excess.tolist(), [2], index)
        assert float(state.score[0]) == expected


def test_tokens_without_a_target_do_not_count():
    excess = proxy().excess.of_tokens(torch.ones(1, 3), torch.zeros(1, 3), torch.tensor([[True, False, True]]))
    assert excess.tolist() == [2.0]


def test_an_absent_domain_keeps_its_score_and_the_average_leaves_out_the_start():
    index = index_of([4, 4])
    strategy = proxy()
    first = strategy.init(index)
    assert strategy.gives(first, index)["mixture"] == {"a": 0.5, "b": 0.5}
    _, one = step(strategy, first, [0, 1], [2.0, 0.0], [2, 2], index)
    weights, two = step(strategy, one, [1, 1], [0.5, 0.5], [1, 1], index)
    assert two.score.tolist() == [1.0, 0.5]
    assert weights.tolist() == pytest.approx([float(two.alpha[1])] * 2)
    mean = (one.alpha + two.alpha) / 2
    assert list(strategy.gives(two, index)["mixture"].values()) == pytest.approx(mean.tolist())


def numpy_group_dro(batches, k, *, eta, c):
    """Algorithm 1, written again: the weights of every step and row."""
    alpha, score, out = np.ones(k) / k, np.zeros(k), []
    for domain, excess, tokens in batches:
        domain, excess, tokens = map(np.array, (domain, excess, tokens))
        for i in range(k):
            if (domain == i).any():
                score[i] = max(excess[domain == i].sum() / tokens[domain == i].sum(), 0)
        raised = alpha * np.exp(eta * score)
        alpha = (1 - c) * raised / raised.sum() + c / k
        per_token = [alpha[d] / tokens[domain == d].sum() for d in domain]
        out.append(np.array(per_token) * tokens.sum())
    return out, alpha


@pytest.mark.parametrize("eta", [0.0, 0.5, 4.0])
def test_step_for_step_equal_to_numpy(eta):
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 3, 6), rng.random(6) * 5, rng.integers(1, 9, 6)) for _ in range(12)]
    expected, alpha = numpy_group_dro(batches, 3, eta=eta, c=1e-3)
    index = index_of([10, 10, 10])
    strategy = proxy(eta=eta)
    state = strategy.init(index)
    for (domain, excess, tokens), weights in zip(batches, expected, strict=True):
        got, state = step(strategy, state, domain, excess, tokens, index)
        assert got.tolist() == pytest.approx(weights.tolist(), rel=1e-6)
    assert state.alpha.tolist() == pytest.approx(alpha.tolist(), abs=1e-12)


def test_loss_of_the_repository():
    """The same where all domains have as many tokens; else tokens count by their domain's weight."""
    index = index_of([4, 4])
    even = [step(proxy(loss=loss), proxy().init(index), [0, 1], [1, 0], [3, 3], index)[0] for loss in ("paper", "repo")]
    assert even[0].tolist() == pytest.approx(even[1].tolist())
    weights, state = step(proxy(loss="repo"), proxy().init(index), [0, 1], [1, 0], [1, 3], index)
    alpha = state.alpha
    assert weights.tolist() == pytest.approx((alpha * 4 / (alpha[0] + 3 * alpha[1])).tolist())


def test_weights_of_the_step_before():
    index = index_of([4, 4])
    strategy = proxy(update="after")
    assert strategy.scope == "example"
    weights, state = step(strategy, strategy.init(index), [0, 1], [1, 0], [1, 1], index)
    assert weights.tolist() == [1.0, 1.0]
    assert float(state.alpha[0]) > 0.5


def test_unigram_toy_of_appendix_d():
    """Lemma 1: the error of a row of counts, (n H + s^2 D) / (n + s)^2, with the printed H and D."""
    rows = np.array([[1, 0, 0], [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    prior = np.full(3, 1 / 3)
    h = (rows * (1 - rows)).sum(1)
    d = ((rows - prior) ** 2).sum(1)
    assert h.tolist() == pytest.approx([0, 0.46, 2 / 3], abs=1e-9)
    assert d.tolist() == pytest.approx([2 / 3, 0.2066667, 0], abs=1e-6)
    rng = np.random.default_rng(1)
    n, s = 20, 3.0
    counts = np.stack([rng.multinomial(n, row, size=40_000) for row in rows])  # (3, draws, 3)
    estimate = (counts + s * prior) / (n + s)
    error = ((estimate - rows[:, None]) ** 2).sum(2).mean(1)
    assert error.tolist() == pytest.approx(((n * h + s**2 * d) / (n + s) ** 2).tolist(), rel=0.02, abs=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"reference": None},
        {"eta": -1},
        {"eta": math.nan},
        {"smoothing": 2},
        {"excess_clip": "row"},
        {"update": "now"},
        {"loss": "x"},
    ],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        proxy(**fields)
