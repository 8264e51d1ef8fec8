"""The co-state of a descent: how the loss of a target set along it depends on where it is.

Papers: PDS, arXiv 2410.07064, section 3 and algorithm 1; DELT, arXiv 2506.21545, equation 8. For a descent
theta_{t+1} = theta_t - lr grad L_t(theta_t), t = 0..T-1, and a target loss J,

    lambda_T = grad J(theta_T),    lambda_t = lambda_{t+1} + grad J(theta_t) - lr H_t lambda_{t+1},

H_t the Hessian of L_t at theta_t. lambda_t is the derivative of J(theta_t) + ... + J(theta_T) by theta_t. So if a row's
loss has weight gamma in the loss of every step, d(J(theta_1) + ... + J(theta_T)) / d gamma is -lr times the row's sum
of lambda_{t+1} . grad l(theta_t): its score.
Differs from the papers: rows' weights are not updated and projected; PDS does one such outer step from equal weights,
which moves no rank but of those it clips.
Everything here is a function of the parameters as one vector, of any model and in any floating-point type.
Letters: P numbers of all parameters, T steps, n rows, A times at which they are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from regimen.core.descent import AlongDescent, Descent
from regimen.core.errors import ConfigError

Part = Callable[[Tensor], Tensor]  # theta (P,) -> a scalar, twice differentiable
Rows = Callable[[Tensor, Tensor | None], Tensor]  # theta (P,), co-state (P,) or None -> dots and norms (n, 2)


class Problem(NamedTuple):
    """The losses of a descent, each as parts that add up, so that no more than one part is held.

    step: the parts of L_t for t from 0, the same whenever it is asked. aim: the parts of J.
    """

    step: Callable[[int], Sequence[Part]]
    aim: Sequence[Part]


class Visit(NamedTuple):
    """A time of the descent on the way back. theta: (P,) there. ahead: (P,) co-state at time + 1, None at the end.

    co_state: (P,) at this time; with `time` it is all that is needed to go on from here after an interruption.
    """

    time: int
    theta: Tensor
    ahead: Tensor | None
    co_state: Tensor


def gradient(parts: Sequence[Part], theta: Tensor) -> Tensor:
    """(P,) of the sum of parts at theta (P,)."""
    total = torch.zeros_like(theta)
    with torch.enable_grad():
        for part in parts:
            at = theta.detach().requires_grad_()
            total += torch.autograd.grad(part(at), at)[0]
    return total


def hessian_product(parts: Sequence[Part], theta: Tensor, vector: Tensor, descent: Descent) -> Tensor:
    """(P,): the Hessian of the sum of parts at theta (P,), times vector (P,), as `descent.hessian` says."""
    if descent.hessian == "none":
        return torch.zeros_like(theta)
    if descent.hessian == "finite_difference":
        length = vector.norm()
        if not bool(length > 0):
            return torch.zeros_like(theta)
        shift = descent.epsilon * vector / length
        change = gradient(parts, theta + shift) - gradient(parts, theta - shift)
        product: Tensor = change * (length / (2 * descent.epsilon))
        return product
    total = torch.zeros_like(theta)
    with torch.enable_grad():
        for part in parts:
            at = theta.detach().requires_grad_()
            (slope,) = torch.autograd.grad(part(at), at, create_graph=True)
            if slope.requires_grad:  # of a linear loss it does not depend on theta
                (found,) = torch.autograd.grad(slope @ vector, at, allow_unused=True)
                total += 0.0 if found is None else found
    return total


def forwards(problem: Problem, theta: Tensor, lr: float, begin: int, end: int) -> Iterator[Tensor]:
    """theta_begin, ..., theta_end (P,) each, from theta_begin."""
    yield theta
    for t in range(begin, end):
        theta = theta - lr * gradient(problem.step(t), theta)
        yield theta


def backwards(problem: Problem, theta: Tensor, descent: Descent, *, since: Visit | None = None) -> Iterator[Visit]:
    """All times of the descent from theta (P,), from the last to 0, each with its co-states.

    since: the last visit of a walk that was interrupted; times before it follow. With memory `sqrt` 2 sqrt(T)
    parameter vectors are held and every step is taken twice; with `all`, T + 1 are and it is taken once.
    Raises ConfigError where the descent leaves the finite numbers.
    """
    size = descent.steps + 1 if descent.memory == "all" else max(isqrt(descent.steps), 1)
    last = descent.steps if since is None else since.time - 1
    if last < 0:
        return
    starts, inside = _starts(problem, theta, descent.lr, last, size)
    co_state = None if since is None else since.co_state
    for begin in sorted(starts, reverse=True):
        if inside is None:
            inside = list(forwards(problem, starts[begin], descent.lr, begin, min(begin + size - 1, last)))
        for t in range(begin + len(inside) - 1, begin - 1, -1):
            here, ahead = inside[t - begin], co_state
            co_state = gradient(problem.aim, here)
            if ahead is not None:
                curved = hessian_product(problem.step(t), here, ahead, descent)
                co_state = co_state + ahead - descent.lr * curved
            if not bool(torch.isfinite(co_state).all()):
                raise _diverged(descent, t)
            yield Visit(t, here, ahead, co_state)
        inside = None


class Walked(NamedTuple):
    """How far a walk back is, after rows were measured at `time`: all that is needed to go on from there.

    co_state: (P,) at `time`. columns: dots and lengths (n, 2) of the times measured so far, from the last; lengths: of
    the co-states beside them. last: (n,) lengths at `Descent.after`, None where they were not asked for.
    """

    time: int
    co_state: Tensor
    columns: list[Tensor]
    lengths: list[Tensor]
    last: Tensor | None

    @property
    def visit(self) -> Visit:
        """The visit at `time`, as `backwards` needs it."""
        return Visit(self.time, self.co_state, None, self.co_state)


def measured_along(
    problem: Problem,
    theta: Tensor,
    descent: Descent,
    rows: Rows,
    *,
    norms: bool,
    since: Walked | None = None,
    keep: Callable[[Walked], None] | None = None,
) -> AlongDescent:
    """What rows' gradients are along the descent from theta (P,).

    rows: measures all rows at once, in one order. norms: whether lengths are needed at the end, where dots are not.
    since: where a walk that was interrupted had come to; the rest is the same to the bit. keep: is told how far it is
    whenever rows were measured.
    """
    visits = backwards(problem, theta, descent, since=None if since is None else since.visit)
    return collected(visits, descent, rows, norms=norms, since=since, keep=keep)


def collected(
    visits: Iterator[Visit],
    descent: Descent,
    rows: Rows,
    *,
    norms: bool,
    since: Walked | None = None,
    keep: Callable[[Walked], None] | None = None,
) -> AlongDescent:
    """The measurements of rows at the times of `descent` among visits, from the last to the first, or from `since`."""
    done = since or Walked(descent.steps + 1, torch.empty(0), [], [], None)
    for visit in visits if done.time > descent.start else ():
        if visit.time in descent.times and visit.ahead is not None:
            column, length = rows(visit.theta, visit.ahead), visit.ahead.norm().double().cpu()  # (n, 2)
            done = done._replace(columns=[*done.columns, column], lengths=[*done.lengths, length])
        elif visit.time == descent.after and norms:
            done = done._replace(last=rows(visit.theta, None)[:, 1])  # (n,)
        else:
            continue
        done = done._replace(time=visit.time, co_state=visit.co_state)
        if keep is not None:
            keep(done)
        if visit.time == descent.start:
            break  # nothing is measured before
    return _along(done)


def _along(done: Walked) -> AlongDescent:
    found = torch.stack(done.columns[::-1], 1).double()  # (n, A, 2)
    end = torch.zeros_like(found[:, 0, 1]) if done.last is None else done.last.double()
    return AlongDescent(found[..., 0], torch.cat([found[..., 1], end[:, None]], 1), torch.stack(done.lengths[::-1]))


def _starts(
    problem: Problem, theta: Tensor, lr: float, last: int, size: int
) -> tuple[dict[int, Tensor], list[Tensor] | None]:
    """Theta (P,) of the first time of each segment of `size` times up to `last`; and all of the last segment."""
    starts: dict[int, Tensor] = {}
    inside: list[Tensor] = []
    for t, here in enumerate(forwards(problem, theta, lr, 0, last)):
        if t % size == 0:
            starts[t], inside = here, []
        inside.append(here)
    return starts, inside


def _diverged(descent: Descent, time: int) -> ConfigError:
    return ConfigError(
        "the co-state of the descent is not finite",
        got=f"lr={descent.lr}, at step {time} of {descent.steps}",
        do="lower lr, or steps, of the descent",
    )
