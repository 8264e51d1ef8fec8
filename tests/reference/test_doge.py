"""DoGE's proxy (arXiv 2310.15393) against closed forms, plain gradients and a NumPy reference over several steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regimen.core.errors import ConfigError, RunError
from regimen.core.schedule import schedule_factor
from regimen.core.strategy import WeighedBatch
from regimen.mixing.doge import DogeProxy, DogeState
from regimen.training.module import Objective
from tests.reference.observations import index_of, observing, weighing

ENTRIES = st.floats(-5, 5, allow_subnormal=False)
CODE = {"clip": 5.0, "normalise_scores": True, "clip_scores": [0, 5], "absent": "last"}


def doge(**fields: object) -> DogeProxy:
    """lr / mu of 0.5 in every step, unless other fields are given."""
    return DogeProxy(**{"lr": 0.05, "mu": 0.1, **fields})  # type: ignore[arg-type]


def gram_of(*gradients: object) -> Tensor:
    matrix = torch.stack([torch.as_tensor(g, dtype=torch.float64) for g in gradients])
    return matrix @ matrix.T


def batch_of(strategy: DogeProxy, gram: Tensor, *, step: int = 0, tokens: list[int] | None = None) -> WeighedBatch:
    """One row of each domain."""
    k = len(gram)
    rows = list(range(k))
    return weighing(rows, tokens=tokens, values={strategy.gram: gram}, index=index_of([9] * k), step=step)


def after(strategy: DogeProxy, gram: Tensor, *, state: DogeState | None = None, step: int = 0) -> DogeState:
    batch = batch_of(strategy, gram, step=step)
    return strategy.observe(strategy.init(batch.index) if state is None else state, observing(batch))


def alpha(state: DogeState) -> Tensor:
    return state.log_alpha.exp()


def test_golden_of_two_domains():
    gram = gram_of((1, 0), (0, 2))
    strategy = doge()
    assert strategy.scores(gram, *strategy.roles(index_of([1, 1]))).tolist() == [1, 4]
    state = after(strategy, gram)
    assert float(state.log_alpha[1] - state.log_alpha[0]) == pytest.approx(3 * 0.05 / 0.1)
    assert float(alpha(state).sum()) == pytest.approx(1)


def test_orthogonal_gradients_of_one_length_keep_uniform():
    for fields in ({}, CODE):
        state = after(doge(**fields), gram_of((3, 0, 0), (0, 3, 0), (0, 0, 3)))
        assert alpha(state).tolist() == pytest.approx([1 / 3] * 3)


def test_duplicate_domains_share_mass():
    state = after(doge(), gram_of((1, 2), (0.5, 1), (1, 2)))
    assert float(state.log_alpha[0]) == float(state.log_alpha[2]) > float(state.log_alpha[1])


@given(
    st.lists(st.tuples(ENTRIES, ENTRIES, ENTRIES), min_size=1, max_size=6), st.randoms(), st.sampled_from([{}, CODE])
)
def test_invariants(rows, random, fields):
    gram, k = gram_of(*rows), len(rows)
    state = after(doge(**fields), gram)
    assert float(alpha(state).sum()) == pytest.approx(1)
    order = list(range(k))
    random.shuffle(order)
    moved = after(doge(**fields), gram[order][:, order])
    assert torch.allclose(alpha(moved), alpha(state)[order])
    if k == 1:
        assert alpha(state).tolist() == [1.0]


def test_one_domain_is_plain_training():
    strategy = doge()
    batch = weighing([0, 0, 0], tokens=[1, 2, 5], values={strategy.gram: gram_of((2, 1))}, index=index_of([3]))
    assert strategy.weigh(strategy.init(batch.index), torch.ones(3), batch).tolist() == [1, 1, 1]


@pytest.mark.parametrize("fields", [{}, {"clip": 0.7}], ids=["paper", "clip"])
def test_the_gradient_of_a_step_is_the_weighted_sum_of_the_domains(fields):
    """Rows of unequal length; domain 3 is absent."""
    torch.manual_seed(0)
    theta = torch.randn(5, dtype=torch.float64, requires_grad=True)
    domain, tokens = torch.tensor([0, 1, 1, 2, 0, 2, 2]), torch.tensor([3, 1, 4, 2, 6, 5, 1])
    features = torch.randn(7, 5, dtype=torch.float64) * (1 + domain[:, None])

    def sums() -> Tensor:
        return tokens * (features @ theta).exp()  # (n,) summed losses

    def domain_gradient(k: int) -> Tensor:
        mine = domain == k
        return torch.autograd.grad(sums()[mine].sum() / tokens[mine].sum(), theta)[0]

    gradients = [*(domain_gradient(k) for k in range(3)), torch.zeros(5, dtype=torch.float64)]
    strategy, index = doge(**fields), index_of([7] * 4)
    batch = weighing(domain, tokens=tokens, values={strategy.gram: gram_of(*gradients)}, index=index)
    weights = strategy.weigh(strategy.init(index), torch.ones(7, dtype=torch.float64), batch)
    objective = Objective(reduction="token_mean")
    step = torch.autograd.grad((weights * objective.terms(sums(), tokens)).sum() / tokens.sum(), theta)[0]
    now = alpha(strategy.observe(strategy.init(index), observing(batch)))
    limit = fields.get("clip", math.inf)
    expected = sum(a * g * min(1.0, limit / max(float(g.norm()), 1e-12)) for a, g in zip(now, gradients, strict=True))
    torch.testing.assert_close(step, expected)


def numpy_reference(
    steps: list[np.ndarray], *, eta: list[float], mu: float, target: list[int], ood: bool
) -> np.ndarray:
    """Mean weights after steps of gradients (K, P), by the text of algorithm 1."""
    k = len(steps[0])
    trained = [j for j in range(k) if not (ood and j in target)]
    weights = {j: 1 / len(trained) for j in trained}
    total = np.zeros(k)
    for g, rate in zip(steps, eta, strict=True):
        raised = {j: weights[j] * math.exp(rate * sum(float(g[j] @ g[i]) for i in target) / mu) for j in trained}
        weights = {j: value / sum(raised.values()) for j, value in raised.items()}
        for j in trained:
            total[j] += weights[j]
    return total / len(steps)


@pytest.mark.parametrize(
    ("target", "ood"), [(None, False), (["b"], False), (["a", "d"], True)], ids=["all", "one", "out-of-domain"]
)
def test_numpy_reference(target, ood):
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(4, 6)) for _ in range(8)]
    cosine = {"kind": "cosine", "warmup": 2, "final": 0.2, "decay": 0.2}
    fields = {"target": target, "out_of_domain": ood, "schedule": cosine, "mu": 0.4}
    strategy, index = doge(**fields), index_of([9] * 4)
    state = strategy.init(index)
    for step, g in enumerate(steps):
        values = {strategy.gram: torch.from_numpy(g @ g.T)}
        state = strategy.observe(
            state, observing(weighing([0, 1, 2, 3], values=values, index=index, step=step, total_steps=8))
        )
    wanted = [index.domains.index(name) for name in target or index.domains]
    eta = [strategy.rate(step, 8) for step in range(8)]
    expected = numpy_reference(steps, eta=eta, mu=0.4, target=wanted, ood=ood)
    got = strategy.gives(state, index)["mixture"]
    assert list(got) == ["a", "b", "c", "d"]
    assert list(got.values()) == pytest.approx(expected.tolist())
    if ood:
        assert got["a"] == got["d"] == 0


def test_targets_out_of_domain_are_measured_and_not_trained_on():
    strategy = doge(target=["b"], out_of_domain=True)
    batch = batch_of(strategy, gram_of((1, 0), (1, 1), (0, -1)))
    weights = strategy.weigh(strategy.init(batch.index), torch.ones(3), batch)
    assert float(weights[1]) == 0
    assert float(weights[0] / weights[2]) == pytest.approx(math.exp(0.5 * (1 - -1)))


def test_a_batch_is_weighed_by_the_alpha_it_leads_to():
    strategy = doge()
    batch = batch_of(strategy, gram_of((1, 0), (0, 2)), tokens=[1, 3])
    state = strategy.init(batch.index)
    weights = strategy.weigh(state, torch.ones(2), batch)
    now = alpha(strategy.observe(state, observing(batch)))
    assert weights.tolist() == pytest.approx([float(now[0]) * 4 / 1, float(now[1]) * 4 / 3])


def test_an_absent_domain_scores_nothing():
    state = after(doge(), gram_of((1, 0), (0, 0), (0, 1)))
    assert float(state.log_alpha[0] - state.log_alpha[1]) == pytest.approx(0.5)
    last = after(doge(absent="last"), gram_of((1, 0), (0, 3), (0, 1)))
    again = after(doge(absent="last"), gram_of((2, 0), (0, 0), (0, 1)), state=last, step=1)
    gained = again.log_alpha - last.log_alpha
    assert float(gained[1] - gained[0]) == pytest.approx(0.5 * ((9 + 3) - 4)), (
        "b counts as it was, with its old products"
    )
    assert float(gained[2] - gained[0]) == pytest.approx(0.5 * ((1 + 3) - 4))


def test_options_of_the_released_code():
    gram = gram_of((30, 40), (-3, -4), (0, 0.5))  # norms 50, 5, 0.5: the first is cut to 5
    strategy = doge(**CODE)
    clipped = gram_of((3, 4), (-3, -4), (0, 0.5))
    mean = (5 + 5 + 0.5) / 3 + 1e-6
    expected = [float(row.sum()) / mean for row in clipped]
    state = after(strategy, gram)
    gained = state.log_alpha + math.log(3)
    # The second is opposed to the others: cut to 0 rather than below.
    assert expected[1] < max(expected[0], 0) + 1e-9
    wanted = torch.tensor(expected, dtype=torch.float64).clamp(0, 5) * 0.5
    assert torch.allclose(gained - gained[0], wanted - wanted[0])
    beside = doge(target=["a"], out_of_domain=True, normalise_scores=True)  # the norm of the target is left out
    roles = beside.roles(index_of([1, 1, 1]))
    assert beside.scores(clipped, *roles)[1:].tolist() == pytest.approx([-25 / 2.750001, 2 / 2.750001])
    high = doge(clip_scores=[0, 5])
    assert high.scores(gram_of((3, 0), (-1, 1)), *high.roles(index_of([1, 1]))).tolist() == [5, 0]


def test_eta_is_the_learning_rate_of_the_run():
    for kind in ("cosine", "linear", "wsd", "constant"):
        schedule = {"kind": kind, "warmup": 7, "final": 0.1, "decay": 0.2}
        strategy, factor = doge(schedule=schedule, lr=3e-4), schedule_factor(schedule, 50)
        for step in range(50):
            assert strategy.rate(step, 50) == pytest.approx(3e-4 * factor(step))
    assert doge(lr=3e-4).rate(3, 50) == 3e-4


def test_no_weight_is_lost_to_underflow():
    strategy = doge(lr=1e5)
    state = after(strategy, gram_of((1, 0), (0, 2)))
    back = after(strategy, gram_of((2, 0), (0, 1)), state=state, step=1)
    assert alpha(state).tolist() == [0, 1]
    assert alpha(back).tolist() == pytest.approx([0.5, 0.5])


def test_before_the_first_step_the_mixture_is_uniform():
    strategy, index = doge(), index_of([1, 1])
    assert strategy.gives(strategy.init(index), index) == {"mixture": {"a": 0.5, "b": 0.5}}


def test_a_gradient_that_is_not_a_number_is_refused():
    strategy = doge()
    batch = batch_of(strategy, gram_of((1, 0), (math.nan, 2)))
    with pytest.raises(RunError, match="at step 1\n  got:     b"):
        strategy.weigh(strategy.init(batch.index), torch.ones(2), batch)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": {"kind": "step", "warmup": 0, "final": 0, "decay": 0.2}},
        {"schedule": {"kind": "cosine", "warmup": -1, "final": 0, "decay": 0.2}},
        *({"absent": "old"}, {"mu": 0}, {"lr": -1.0}, {"lr": math.nan}),
        *({"clip": 0.0}, {"clip_scores": [5, 0]}, {"clip_scores": [1]}, {"target": []}),
        *({"out_of_domain": True}, {"parameters": "("}),
    ],
)
def test_settings_that_cannot_work(fields):
    with pytest.raises(ConfigError):
        doge(**fields).needs()


def test_targets_that_the_pool_lacks():
    with pytest.raises(ConfigError, match="no domain of this name"):
        doge(target=["z"]).init(index_of([1, 1]))
    with pytest.raises(ConfigError, match="every domain"):
        doge(target=["a", "b"], out_of_domain=True).init(index_of([1, 1]))
