"""Co-state scores (arXiv 2410.07064, 2506.21545): exact rationals, closed forms, finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regimen.core.descent import AlongDescent, Descent
from regimen.core.errors import ConfigError
from regimen.signals.co_state import KINDS, combined
from regimen.training.co_state import Problem, backwards, collected, forwards, gradient, measured_along
from regimen.training.row_products import Given, row_products

BACKENDS = ("jvp", "finite_difference", "vmap", "loop")
FINE = Descent(steps=3, lr=0.1, annotate_every=1, backend="loop", epsilon=1e-5)


class Toy(NamedTuple):
    """Rows with losses of their own, one batch of all of them at every step, and a target loss."""

    losses: Callable[[Tensor, Given], Tensor]
    rows: Given
    problem: Problem
    theta: Tensor


def toy(losses: Callable, rows: Given, target: Callable, theta: Tensor, weights: Tensor | None = None) -> Toy:
    n = len(rows[0])
    gamma = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
    return Toy(losses, rows, Problem(lambda t: [lambda at: losses(at, rows) @ gamma], [target]), theta)


def along(of: Toy, descent: Descent, *, rows: Given | None = None, chunk: int | None = None) -> AlongDescent:
    given = of.rows if rows is None else rows
    size = chunk or len(given[0])

    def measure(theta: Tensor, ahead: Tensor | None) -> Tensor:
        options = {"backend": descent.backend, "norms": True, "epsilon": descent.epsilon}
        parts = zip(*(x.split(size) for x in given), strict=True)
        return torch.cat([row_products(of.losses, theta, ahead, part, **options) for part in parts])

    return measured_along(of.problem, of.theta, descent, measure, norms=True)


def scalar() -> Toy:
    x, y = torch.tensor([[1.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    return toy(
        lambda at, rows: 0.5 * (rows[0] * at - rows[1]) ** 2,
        (x, y),
        lambda at: 0.5 * ((at - 1) ** 2).sum(),
        torch.zeros(1, dtype=torch.float64),
    )


def lm(weights: Tensor | None = None, *, n: int = 24) -> Toy:
    """A language model of two layers, n rows of 6 tokens, and 3 target rows."""
    V, w = 5, 4
    draw = torch.Generator().manual_seed(0)
    shapes = [(V, w), (w, w), (w, V)]
    theta = torch.cat([torch.randn(a * b, generator=draw, dtype=torch.float64) / 2 for a, b in shapes])
    rows, target = torch.randint(V, (n, 6), generator=draw), torch.randint(V, (3, 6), generator=draw)

    def losses(at: Tensor, given: Given) -> Tensor:
        parts = at.split([a * b for a, b in shapes])
        embedding, inner, head = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        logits = torch.tanh(embedding[given[0][:, :-1]] @ inner) @ head  # (b, T, V)
        return F.cross_entropy(logits.transpose(1, 2), given[0][:, 1:], reduction="none").mean(1)

    return toy(losses, (rows,), lambda at: losses(at, (target,)).mean(), theta, weights)


LM = replace(FINE, steps=6, lr=0.5, epsilon=1e-4)


def close(found: Tensor, wanted: Sequence[float] | Tensor, rtol: float = 1e-12) -> bool:
    return torch.allclose(found, torch.as_tensor(wanted, dtype=torch.float64), rtol=rtol, atol=0)


@pytest.mark.parametrize("memory", ["sqrt", "all"])
def test_the_scalar_problem_in_exact_rationals(memory: str) -> None:
    """V1: theta, lambda, PDS and LQS of a problem that can be done by hand."""
    of, descent = scalar(), replace(FINE, memory=memory)
    visits = list(backwards(of.problem, of.theta, descent))[::-1]
    assert close(torch.cat([v.theta for v in visits]), [0, 1 / 20, 7 / 80, 37 / 320])
    assert close(torch.cat([v.co_state for v in visits]), [-10645 / 4096, -2183 / 1024, -2017 / 1280, -283 / 320])
    found = along(of, descent)
    assert close(combined(found, "pds"), [113557 / 25600, -1999 / 3200])
    assert close(combined(found, "lqs"), [8516539 / 1775360, -130097 / 82880])
    assert close(-descent.lr * combined(found, "pds"), [-0.44358203125, 0.06246875])  # dA / d gamma
    late = along(of, replace(descent, start=1))
    assert close(combined(late, "lqs"), [59639 / 23360, -130097 / 82880])
    # By hand in fractions: |g| of both rows is |theta - 1| and 4 |theta|, at the four times.
    places = [Fraction(0), Fraction(1, 20), Fraction(7, 80), Fraction(37, 320)]
    lengths = [[abs(p - 1) for p in places], [4 * p for p in places]]
    learnable = [float(sum(a / b for a, b in itertools.pairwise(row))) for row in lengths]
    assert close(combined(found, "learnability"), learnable)
    # Below the target both rows' cosines are signs: row 1 pulls up as the target does, row 2 back once it is off 0.
    assert close(combined(found, "quality"), [3.0, -2.0])


def regression() -> tuple[Toy, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(20, 5, generator=draw, dtype=torch.float64),
        torch.randn(20, generator=draw, dtype=torch.float64),
    )
    aim = torch.randn(5, generator=draw, dtype=torch.float64)
    of = toy(
        lambda at, rows: 0.5 * (rows[0] @ at - rows[1]) ** 2,
        (x, y),
        lambda at: 0.5 * ((at - aim) ** 2).sum(),
        torch.zeros(5, dtype=torch.float64),
    )
    return of, x, y, aim, x.T @ x / 20


@pytest.mark.parametrize("hessian", ["exact", "finite_difference", "none"])
def test_linear_regression_in_closed_form(hessian: str) -> None:
    """V2: lambda_t = sum_s (I - lr H)^(s-t) grad J(theta_s), and rows' gradients are residuals times inputs."""
    of, x, y, aim, H = regression()
    descent = replace(FINE, steps=7, hessian=hessian, epsilon=0.1)
    path = list(forwards(of.problem, of.theta, descent.lr, 0, 7))
    step = torch.eye(5, dtype=torch.float64) - descent.lr * (0 * H if hessian == "none" else H)
    lam = [sum(torch.linalg.matrix_power(step, s - t) @ (path[s] - aim) for s in range(t, 8)) for t in range(8)]
    visits = list(backwards(of.problem, of.theta, descent))[::-1]
    rtol = 1e-8 if hessian == "finite_difference" else 1e-10
    assert close(torch.stack([v.co_state for v in visits]), torch.stack(lam), rtol)
    residual = torch.stack([x @ at - y for at in path], 1)  # (n, T + 1)
    length = residual.abs() * x.norm(dim=1, keepdim=True)
    dots = torch.stack([residual[:, t] * (x @ lam[t + 1]) for t in range(7)], 1)
    found = along(of, descent)
    assert close(combined(found, "lqs"), (dots / length[:, 1:]).sum(1), 1e-7)
    assert close(combined(found, "pds"), dots.sum(1), 1e-7)


def test_first_terms() -> None:
    """Every second time of 7 steps: 0, 2, 4, 6, with the last denominator at 7, at 1, or with no last term."""
    of, descent = regression()[0], replace(FINE, steps=7)
    whole, some = along(of, descent), along(of, replace(descent, annotate_every=2))
    dots, length = whole.dots[:, ::2], whole.norms[:, [0, 2, 4, 6, 7]]
    terms = dots / length[:, 1:]
    assert close(combined(some, "lqs"), terms.sum(1))
    assert close(combined(some, "lqs", "skip"), terms[:, :-1].sum(1))
    assert close(combined(some, "lqs", "one"), terms[:, :-1].sum(1) + dots[:, -1])
    assert close(some.co_states, whole.co_states[::2])


def test_pds_is_the_derivative_of_the_area_under_the_target_loss() -> None:
    """V3: dA / d gamma_n = -lr s_n with A = J(theta_1) + ... + J(theta_T), by central differences."""
    n, shift = 24, 1e-5
    gamma = torch.full((n,), 1 / n, dtype=torch.float64)

    def area(weights: Tensor) -> float:
        of = lm(weights)
        with torch.no_grad():
            path = list(forwards(of.problem, of.theta, LM.lr, 0, LM.steps))
            return float(sum(of.problem.aim[0](at) for at in path[1:]))

    scores = combined(along(lm(), LM), "pds")
    for row in (0, 7, 23):
        moved = torch.zeros_like(gamma)
        moved[row] = shift
        slope = (area(gamma + moved) - area(gamma - moved)) / (2 * shift)
        assert slope == pytest.approx(float(-LM.lr * scores[row]), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 24])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_and_chunks_agree(backend: str, chunk: int) -> None:
    """V4: one score per row, whatever the way and the rows measured at once."""
    reference, found = along(lm(), LM), along(lm(), replace(LM, backend=backend), chunk=chunk)
    assert found.dots.shape == (24, 6) and found.norms.shape == (24, 7)
    rtol = 1e-5 if backend == "finite_difference" else 1e-10
    for a, b in zip(found, reference, strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["jvp", "vmap"])
def test_scores_belong_to_their_rows(kind: str, backend: str) -> None:
    """V4, V7: a permutation of the rows permutes the scores, and duplicates get equal ones, at any place."""
    of, descent = lm(), replace(LM, backend=backend)
    scores = combined(along(of, descent), kind)
    assert scores.shape == (24,)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order, order[:5]])
    moved = combined(along(of, descent, rows=[x[order] for x in of.rows], chunk=8), kind)
    assert torch.allclose(moved, scores[order], rtol=1e-10, atol=1e-12)


def test_scaling_laws() -> None:
    """V7: a row's loss times 3 multiplies its PDS alone; the target loss times 3 multiplies both."""
    of = lm()
    scores = {kind: combined(along(of, LM), kind) for kind in KINDS}
    louder = of._replace(losses=lambda at, given: 3 * of.losses(at, given))
    found = along(louder, LM)
    for kind in KINDS:
        assert close(combined(found, kind), (3 if kind == "pds" else 1) * scores[kind], 1e-9)
    wanted = of._replace(problem=Problem(of.problem.step, [lambda at: 3 * of.problem.aim[0](at)]))
    found = along(wanted, LM)
    for kind in KINDS:
        assert close(combined(found, kind), (3 if kind in ("pds", "lqs") else 1) * scores[kind], 1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10])
def test_memory_changes_nothing(steps: int) -> None:
    """V5: to the bit, since the same steps are taken again."""
    of, descent = lm(), replace(LM, steps=steps)
    for a, b in zip(
        backwards(of.problem, of.theta, descent),
        backwards(of.problem, of.theta, replace(descent, memory="all")),
        strict=True,
    ):
        assert a.time == b.time and torch.equal(a.theta, b.theta) and torch.equal(a.co_state, b.co_state)


@pytest.mark.parametrize(("memory", "most"), [("all", 25), ("sqrt", 45)])
def test_how_often_steps_are_taken(memory: str, most: int) -> None:
    """V5: once where every step's parameters are kept, at most twice otherwise; without curvature, which asks too."""
    of, asked = lm(), []
    counted = Problem(lambda t: asked.append(t) or of.problem.step(t), of.problem.aim)
    visits = list(backwards(counted, of.theta, replace(LM, steps=25, hessian="none", memory=memory)))
    # The Hessian's part of a step is asked for and not used.
    assert len(visits) == 26 and set(asked) == set(range(25)) and len(asked) - 25 <= most


def test_a_walk_back_goes_on_after_an_interruption() -> None:
    """V6: from any visit, the rest is the same to the bit."""
    of = lm()
    whole = list(backwards(of.problem, of.theta, LM))
    for cut, visit in enumerate(whole):
        rest = list(backwards(of.problem, of.theta, LM, since=visit))
        assert [v.time for v in rest] == [v.time for v in whole[cut + 1 :]]
        for a, b in zip(rest, whole[cut + 1 :], strict=True):
            assert torch.equal(a.theta, b.theta) and torch.equal(a.co_state, b.co_state)
            assert a.ahead is not None and b.ahead is not None and torch.equal(a.ahead, b.ahead)


@pytest.mark.parametrize("descent", [LM, replace(LM, annotate_every=4), replace(LM, start=2, annotate_every=3)])
def test_what_is_measured_goes_on_after_an_interruption(descent: Descent) -> None:
    """V6: from wherever rows were measured last; what was measured is not measured again."""
    of, kept, asked = lm(), [], []

    def measure(theta: Tensor, ahead: Tensor | None) -> Tensor:
        asked.append(ahead is not None)
        return row_products(of.losses, theta, ahead, of.rows, backend="loop", norms=True, epsilon=1e-5)

    whole = measured_along(of.problem, of.theta, descent, measure, norms=True, keep=kept.append)
    everything = list(asked)
    assert everything == [False] * (descent.after not in descent.times) + [True] * len(descent.times)
    assert [done.time for done in kept] == [descent.after, *descent.times[::-1]]
    for number, done in enumerate(kept, start=1):
        asked.clear()
        rest = measured_along(of.problem, of.theta, descent, measure, norms=True, since=done)
        assert asked == everything[number:]
        assert all(torch.equal(a, b) for a, b in zip(rest, whole, strict=True))


def test_parts_add_up() -> None:
    of = lm()
    halves = [slice(0, 12), slice(12, 24)]
    parts = [lambda at, h=half: of.losses(at, [of.rows[0][h]]).sum() / 24 for half in halves]
    assert torch.allclose(gradient(parts, of.theta), gradient(of.problem.step(0), of.theta), rtol=1e-12)
    split = of._replace(problem=Problem(lambda t: parts, of.problem.aim))
    assert close(combined(along(split, LM), "lqs"), combined(along(of, LM), "lqs"), 1e-9)


def test_a_loss_without_curvature_and_a_row_without_gradient() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    of = toy(lambda at, r: r[0] @ at, (x,), lambda at: at.sum(), torch.zeros(2, dtype=torch.float64))
    found = along(of, FINE)
    assert close(found.dots[0], [3.0, 2.0, 1.0]) and not bool(found.dots[1].any())  # grad J = (1, 1), summed
    for kind in KINDS:
        scores = combined(found, kind)
        assert bool(torch.isfinite(scores).all()) and float(scores[1]) == 0


def test_a_descent_that_diverges_is_refused() -> None:
    of = regression()[0]
    with pytest.raises(ConfigError, match="not finite"):
        list(backwards(of.problem, of.theta, replace(FINE, steps=400, lr=100.0)))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"lr": 0.0}, {"hessian": "no"}, {"backend": "no"}, {"start": 3, "steps": 3}, {"epsilon": -1.0}],
)
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Descent(**wrong)


def test_collected_takes_the_times_asked_for() -> None:
    of = lm()
    asked: list[float] = []

    def rows(theta: Tensor, ahead: Tensor | None) -> Tensor:
        asked.append(-1.0 if ahead is None else 1.0)
        return torch.zeros(4, 2, dtype=torch.float64)

    found = collected(backwards(of.problem, of.theta, LM), replace(LM, annotate_every=4), rows, norms=False)
    assert found.dots.shape == (4, 2) and asked == [1.0, 1.0]
