"""ADO (arXiv 2410.11820): laws recovered and against SciPy, smoothing against SciPy, the policy in closed form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.signal import savgol_filter

from regimen.core.errors import ConfigError
from regimen.mixing.ado import Ado, AdoState, falling, preference
from regimen.mixing.loss_curve import fit_power_laws, predicted, savitzky_golay
from tests.reference.observations import LOSS, index_of, seeing

NAN = float("nan")
LAWS = torch.tensor([[2.0, 0.7, 0.3], [5.0, 0.9, 0.65], [1.0, 1.2, 0.12]], dtype=torch.float64)  # a, e, alpha


def losses_of(counts: torch.Tensor, *, noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    """(T, 3) losses of LAWS at counts (T,)."""
    rng = torch.Generator().manual_seed(seed)
    exact = predicted(LAWS[None], counts[:, None])
    return exact * (1 + noise * torch.randn(exact.shape, generator=rng, dtype=torch.float64))


def objective(law, counts, losses):
    """As the released code states it."""
    a, e, alpha = law
    prediction = np.logaddexp(a - alpha * np.log(counts), e)
    off = np.abs(np.log(losses) - prediction)
    huber = np.where(off > 1e-3, 1e-3 * (off - 0.5e-3), 0.5 * off**2).sum()
    return huber + max(alpha - 0.8, 0) + max(0.001 - alpha, 0) + max(0.5 - e, 0) + max(a - 6.5, 0)


@pytest.mark.parametrize("points", [5, 20, 100, 700])
def test_exact_laws_are_recovered(points):
    counts = torch.linspace(500, 200_000, points, dtype=torch.float64)
    found = fit_power_laws(counts[:, None].expand(-1, 3), losses_of(counts))
    assert torch.allclose(found, LAWS, rtol=0.01)
    assert torch.allclose(found, LAWS, rtol=1e-6)


@pytest.mark.parametrize(
    ("factor", "noise"),
    [(1.0, 0.01), (0.5, 0.003), (3.0, 0.0)],  # 0.5: the floor lies below exp(0.5), so that a penalty binds
)
def test_a_fit_is_as_good_as_the_best_of_many_by_scipy(factor, noise):
    counts = torch.linspace(500, 100_000, 60, dtype=torch.float64)
    losses = losses_of(counts, noise=noise) * factor
    found = fit_power_laws(counts[:, None].expand(-1, 3), losses)
    for law, curve in zip(found.numpy(), losses.T.numpy(), strict=True):
        starts = [(a, e, alpha) for a in (1, 5) for e in (0.6, 1.2) for alpha in (0.1, 0.6)]
        options = {"maxiter": 3000, "xatol": 1e-9, "fatol": 1e-15}
        args = (counts.numpy(), curve)
        best = min(minimize(objective, s, args, method="Nelder-Mead", options=options).fun for s in starts)
        assert objective(law, *args) <= best * (1 + 1e-4) + 1e-12


def test_a_curve_that_rises_is_fitted_as_flat_as_allowed():
    counts = torch.linspace(100, 10_000, 50, dtype=torch.float64)
    law = fit_power_laws(counts[:, None], torch.linspace(2, 3, 50, dtype=torch.float64)[:, None])[0]
    assert law.isfinite().all()
    assert 0 <= float(law[2]) <= 0.01 or float(falling(law[None], counts[-1:], least_alpha=0)) < 1e-3


def test_a_fit_that_fails_is_nan_and_leaves_the_others_alone():
    counts = torch.linspace(500, 100_000, 60, dtype=torch.float64)
    losses = losses_of(counts)
    losses[7, 1] = NAN
    found = fit_power_laws(counts[:, None].expand(-1, 3), losses)
    assert found[1].isnan().all()
    assert torch.allclose(found[[0, 2]], LAWS[[0, 2]], rtol=1e-6)


@pytest.mark.parametrize(("steps", "window", "order"), [(300, 101, 3), (101, 101, 3), (102, 101, 3), (20, 7, 2)])
def test_smoothing_is_scipys(steps, window, order):
    values = torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = savgol_filter(values.numpy(), window, order, axis=0)
    assert np.allclose(savitzky_golay(values, window=window, order=order).numpy(), expected, atol=1e-10)


def run_of(mixer: Ado, losses: torch.Tensor, *, total_steps: int | None = None, index=None) -> tuple[AdoState, object]:
    """The state after steps with one row of each domain and these losses (T, K)."""
    steps, k = losses.shape
    index = index or index_of([10] * k)
    ids = index.offsets[:-1]
    state = mixer.init(index)
    seen = seeing(losses[0], ids=ids, index=index, step=0, total_steps=total_steps or steps)
    state = mixer.advance(state, mixer.checked(mixer.decide(state, seen), seen), seen)
    for t, row in enumerate(losses):
        seen = seeing(row, ids=ids, index=index, step=t + 1, total_steps=total_steps or steps)
        state = mixer.observe(state, seen)
        decision = mixer.checked(mixer.decide(state, seen), seen)
        state = mixer.advance(state, decision, seen)
    return state, decision


@pytest.mark.parametrize("steps", [30, 101, 102, 160, 437])
@pytest.mark.parametrize("ignore", [0, 7, 90])
def test_the_points_are_those_of_a_filter_over_the_whole_curve(steps, ignore):
    """Points are made as their windows close, so that neither state nor step grows with the run; here they all are."""
    counts = 3.0 * torch.arange(1, steps + 1, dtype=torch.float64)
    losses = losses_of(counts, noise=0.05)
    mixer = Ado(ignore=ignore, start=10**6, stride=10)
    state, _ = run_of(mixer, losses)
    seen = seeing(losses[0], index=index_of([10] * 3), step=steps, total_steps=steps)
    got, rows = mixer._curves(state, seen)
    window = min(101, steps - (steps % 2 == 0))
    if steps < 101:
        stride = max(1, min(10, (steps - ignore) // 20))
    else:
        stride = 10
    expected = savgol_filter(losses.numpy(), window, 3, axis=0)[ignore::stride]
    assert np.allclose(got.numpy(), expected, atol=1e-9)
    assert rows[:, 0].tolist() == counts[ignore::stride].tolist()
    assert len(state.losses) <= 101


def test_a_run_recovers_its_laws():
    counts = 3.0 * torch.arange(1, 401, dtype=torch.float64)
    # With the window of the paper, the smoothing itself bends so short a curve.
    state, _ = run_of(Ado(ignore=50, start=400, window=11), losses_of(counts))
    assert state.fitted == 400
    assert torch.allclose(state.laws, LAWS, rtol=0.01)


def test_the_policy_by_hand():
    natural = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    speed = falling(LAWS, torch.tensor([1000.0] * 3).double(), least_alpha=0.05)
    slope = predicted(LAWS, torch.tensor([999.5] * 3).double()) - predicted(LAWS, torch.tensor([1000.5] * 3).double())
    assert torch.allclose(speed, slope, rtol=1e-6, atol=0)
    rho = preference(natural, natural**0.5, speed, floor=0.0)
    by_hand = [
        m**1.5 * a * np.exp(b) * 1000 ** (-a - 1) for m, (b, _, a) in zip(natural.tolist(), LAWS.tolist(), strict=True)
    ]
    assert rho.tolist() == pytest.approx((np.array(by_hand) / np.sum(by_hand)).tolist())
    assert preference(
        natural, natural * 0 + 1, torch.tensor([1.0, 0, 0]).double(), floor=0.01
    ).tolist() == pytest.approx([1 / 1.02, 0.01 / 1.02, 0.01 / 1.02])


def test_an_exponent_has_a_least_value():
    law, count = torch.tensor([[1.0, 0.7, 0.01]]).double(), torch.tensor([100.0]).double()
    reducible = float(predicted(law, count)) - np.exp(0.7)
    assert float(falling(law, count, least_alpha=0.05)) == pytest.approx(0.05 * reducible / 100)


def test_equal_laws_and_drawn_as_natural_give_natural_to_the_power_of_one_and_a_half():
    natural = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    rho = preference(natural, natural**0.5, torch.ones(3).double(), floor=0.0)
    assert torch.allclose(rho, natural**1.5 / (natural**1.5).sum())


@pytest.mark.parametrize("credit", ["h", "h(1-h)"])
def test_equal_domains_stay_equal(credit):
    counts = torch.arange(1, 121, dtype=torch.float64)
    curve = losses_of(counts)[:, :1].expand(-1, 4)
    _, decision = run_of(Ado(start=20, refit_every=10, credit=credit), curve)
    assert decision.tolist() == pytest.approx([0.25] * 4)


def test_the_mean_and_what_was_drawn_by_hand():
    index = index_of([10, 10], [1, 3])
    mixer = Ado()
    state = mixer.init(index)._replace(laws=LAWS[:2])
    assert state.mean.tolist() == state.drawn.tolist() == [0.25, 0.75]
    seen = seeing([2.0, 2.0], ids=[0, 1], index=index, step=9)
    state = mixer.observe(state, seen)
    drawn = torch.tensor([0.9 * 0.25 + 0.1, 0.9 * 0.75]).double()
    assert torch.allclose(state.drawn, drawn)
    assert state.rows[-1].tolist() == [2, 2]
    rho = preference(index.natural(), drawn**0.5, falling(LAWS[:2], state.rows[-1], least_alpha=0.05), floor=0.01)
    assert torch.allclose(mixer.decide(state, seen), 0.9 * index.natural() + 0.1 * rho)
    after = mixer.advance(state, mixer.decide(state, seen), seen)
    assert torch.allclose(after.mean, 0.9 * index.natural() + rho / 10)
    repo = dataclasses.replace(mixer, credit="h(1-h)", counts="domain")
    state = repo.observe(repo.init(index), seen)
    assert state.rows[-1].tolist() == [2, 0]


def test_natural_until_the_first_fit_which_comes_as_set():
    losses = losses_of(torch.arange(1, 61, dtype=torch.float64))
    for start, first in ((0.5, 30), (20, 20), (0, 6)):
        mixer = Ado(start=start)
        early, decision = run_of(mixer, losses[: first - 1], total_steps=60, index=index_of([10, 20, 30]))
        assert early.fitted == -1
        assert decision.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
        late, decision = run_of(mixer, losses[:first], total_steps=60, index=index_of([10, 20, 30]))
        assert late.fitted == first
        assert decision.tolist() != pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert run_of(Ado(start=20, refit_every=0.25), losses)[0].fitted == 50


def test_a_domain_that_is_absent_or_not_a_number_keeps_its_last_loss():
    index, mixer = index_of([4, 4, 4]), Ado(start=1000)
    state = mixer.init(index)
    for step, (ids, losses) in enumerate([([0, 4], [2.0, 4.0]), ([0, 8], [1.0, 5.0]), ([0, 4], [NAN, 3.0])]):
        state = mixer.observe(state, seeing(losses, ids=ids, index=index, step=step + 1))
    # At first a domain without a loss has the mean of the others.
    assert state.losses.tolist() == [[2, 4, 3], [1, 4, 5], [1, 3, 5]]


def test_a_fit_that_is_not_finite_keeps_the_laws():
    index, mixer = index_of([4, 4]), Ado(start=0)
    state = mixer.init(index)
    state = state._replace(laws=LAWS[:2], losses=torch.full((30, 2), NAN).double(), rows=torch.ones(30, 2).double())
    state = mixer.observe(state._replace(steps=30), seeing([2.0, 3.0], ids=[0, 4], index=index, step=31))
    assert torch.equal(state.laws, LAWS[:2])


def test_domains_without_rows_and_a_single_domain():
    losses = losses_of(torch.arange(1, 31, dtype=torch.float64))
    mixer = Ado(start=0.2)
    state = mixer.init(index_of([10, 0, 20]))
    for step in range(30):
        seen = seeing(losses[step, [0, 2]], ids=[0, 10], index=index_of([10, 0, 20]), step=step + 1, total_steps=30)
        state = mixer.observe(state, seen)
    shares = mixer.checked(mixer.decide(state, seen), seen)
    assert float(shares[1]) == 0
    for credit in ("h", "h(1-h)"):
        assert run_of(Ado(start=0.2, credit=credit), losses[:, :1])[1].tolist() == [1.0]


def test_permuted_domains_get_permuted_shares():
    losses = losses_of(torch.arange(1, 121, dtype=torch.float64), noise=0.01)
    order = [2, 0, 1]
    mixer = Ado(start=0.2, refit_every=20)
    _, plain = run_of(mixer, losses, index=index_of([10, 20, 30]))
    _, permuted = run_of(mixer, losses[:, order], index=index_of([30, 10, 20]))
    assert permuted.tolist() == pytest.approx(plain[order].tolist(), rel=1e-6)


def test_a_state_is_made_of_tensors_and_numbers_and_observe_leaves_it_alone():
    losses = losses_of(torch.arange(1, 31, dtype=torch.float64))
    mixer = Ado(start=0.2)
    state, _ = run_of(mixer, losses)
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in state]
    mixer.observe(state, seeing([1.0, 1.0, 1.0], ids=[0, 10, 20], index=index_of([10] * 3), step=31, total_steps=30))
    for x, y in zip(before, state, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": -1}, "start"),
        ({"ignore": 1.5}, "ignore"),
        ({"refit_every": 0}, "refit_every"),
        ({"window": 4}, "window"),
        ({"window": 3}, "window"),
        ({"order": 101}, "order"),
        ({"stride": 0}, "stride"),
        ({"counts": "tokens"}, "all, domain"),
        ({"credit": "1-h"}, "h, h"),
        ({"credit_decay": 1}, "credit_decay"),
        ({"floor": NAN}, "floor"),
        ({"blend": 1.1}, "blend"),
        ({"draw": "dice"}, "multinomial"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Ado(**settings)


def test_watches_the_training_loss():
    assert Ado().watches() == (LOSS,)
    assert Ado().needs() == ()
