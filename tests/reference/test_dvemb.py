"""DVEmb (arXiv 2412.09538): the recursion against explicit products and against retraining without a row."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.measuring import Sketch
from regimen.signals.embedded_value import EmbeddedValue
from regimen.signals.gradients import GradientSketch
from regimen.training.drawn_labels import drawn_labels
from regimen.training.sketching import Sketcher
from regimen.weighting.embedding_log import EmbeddingLog
from regimen.weighting.value_embedding import LoggedStep, embed, stitch
from tests.reference.observations import index_of, weighing
from tests.reference.valuing import seeing_gradients

BY = GradientSketch(sketch=Sketch(kind="whole"))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logged(steps: int = 6, rows: int = 5, d: int = 8, *, scale: float = 0.2) -> list[LoggedStep]:
    shares = torch.linspace(0.5, 1.5, rows).double()
    return [LoggedStep(scale * drawn(s, rows, d), shares * (1 + s / 10)) for s in range(steps)]


def explicit(steps: list[LoggedStep]) -> list[Tensor]:
    """Embeddings by multiplying whole matrices in the order of the definition."""
    d = steps[0].gradients.shape[1]
    out = []
    for s, step in enumerate(steps):
        after = torch.eye(d, dtype=torch.float64)
        for later in steps[s + 1 :]:
            after = (torch.eye(d).double() - later.gradients.T @ (later.shares[:, None] * later.gradients)) @ after
        out.append((step.shares[:, None] * step.gradients) @ after.T)
    return out


def test_the_recursion_is_the_explicit_product():
    steps = logged()
    got = embed(steps)
    for mine, expected in zip(got.embeddings, explicit(steps), strict=True):
        assert torch.allclose(mine, expected, atol=1e-15, rtol=0)
    assert torch.allclose(got.embeddings[-1], steps[-1].shares[:, None] * steps[-1].gradients)


def test_blocks_that_do_not_interact():
    steps = logged(d=12)
    got = embed(steps, blocks=3).embeddings
    for block in range(3):
        cut = slice(4 * block, 4 * block + 4)
        alone = embed([LoggedStep(step.gradients[:, cut], step.shares) for step in steps]).embeddings
        assert all(torch.allclose(a[:, cut], b, atol=1e-15) for a, b in zip(got, alone, strict=True))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("cuts", [[3], [1, 2], [1, 2, 3, 4, 5]])
def test_parts_stitched_are_the_whole(cuts, blocks):
    steps = logged()
    edges = [0, *cuts, len(steps)]
    parts = [embed(steps[a:b], blocks=blocks, first=a) for a, b in pairwise(edges)]
    whole, got = embed(steps, blocks=blocks), stitch(parts)
    assert all(torch.allclose(a, b, atol=1e-15) for a, b in zip(got.embeddings, whole.embeddings, strict=True))
    assert torch.allclose(got.passed, whole.passed, atol=1e-15)


@dataclass(frozen=True)
class Regression:
    """Half the squared error of a linear model, trained by gradient descent on the sum over a batch."""

    x: Tensor
    y: Tensor
    batches: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]

    def train(self, *, without: tuple[int, int] | None = None) -> tuple[Tensor, list[LoggedStep], list[LoggedStep]]:
        """The last parameters, and the log with the Fisher matrix and with the Hessian; `without` a (step, row)."""
        w = torch.zeros(self.x.shape[1], dtype=torch.float64)
        fisher, hessian = [], []
        for step, (ids, rate) in enumerate(zip(self.batches, self.rates, strict=True)):
            rows = [i for i in ids if (step, i) != without]
            x, y = self.x[rows], self.y[rows]
            gradients, shares = (x @ w - y)[:, None] * x, torch.full((len(rows),), rate, dtype=torch.float64)
            fisher.append(LoggedStep(gradients, shares))
            hessian.append(LoggedStep(gradients, shares, x, shares))
            w = w - rate * gradients.sum(0)
        return w, fisher, hessian


LINEAR = Regression(
    drawn(0, 36, 4),
    drawn(1, 36),
    tuple(tuple(range(6 * b, 6 * b + 6)) for b in (*range(6), *range(6))),
    tuple(0.03 - 0.002 * s for s in range(12)),
)


def shift(step: int, row: int) -> Tensor:
    """How the last parameters move when the row is left out of the step, but later Hessians keep all rows."""
    return LINEAR.train(without=(step, row))[0] - LINEAR.train()[0]


def test_with_the_true_hessian_it_is_the_shift_of_retraining():
    """A quadratic loss: the Gauss-Newton factors x make the embedding the exact shift of the last parameters."""
    found = embed(LINEAR.train()[2]).embeddings
    for step, row in ((0, 2), (3, 20), (7, 9), (11, 35)):
        mine = found[step][LINEAR.batches[step].index(row)]
        assert torch.allclose(mine, shift(step, row), atol=1e-16, rtol=1e-12)


def test_factors_are_the_hessian_of_the_definition():
    steps = LINEAR.train()[2]
    after = torch.eye(4, dtype=torch.float64)
    for step in steps[3:]:
        assert step.factors is not None and step.factor_shares is not None
        after = (torch.eye(4).double() - step.factors.T @ (step.factor_shares[:, None] * step.factors)) @ after
    expected = (steps[2].shares[:, None] * steps[2].gradients) @ after.T
    assert torch.allclose(embed(steps).embeddings[2], expected, atol=1e-15)


def test_softmax_factors_are_the_hessian_of_a_linear_head():
    """sqrt(p_a) (onehot_a - p) x^T over classes a: against autograd's Hessian of the cross-entropy."""
    x, w = drawn(2, 3), drawn(3, 4, 3)
    p = (w @ x).softmax(0)
    factors = torch.stack([p[a].sqrt() * torch.outer(torch.eye(4).double()[a] - p, x).flatten() for a in range(4)])

    def loss(flat: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(flat.view(4, 3) @ x, torch.tensor(1))

    hessian = torch.autograd.functional.hessian(loss, w.flatten())
    assert torch.allclose(factors.T @ factors, hessian, atol=1e-12)


def leave_one_out(seed: int, *, rate: float) -> tuple[float, float]:
    """Rank correlations of values with what the target's loss becomes without a row: with Fisher and Gauss-Newton.

    36 rows of a logistic regression in six steps of six.
    """
    x, target_x, truth = drawn(seed, 36, 5), drawn(seed + 1, 30, 5), drawn(seed + 2, 5)
    y = (x @ truth + 2 * drawn(seed + 3, 36) > 0).double()
    target_y = (target_x @ truth + 2 * drawn(seed + 4, 30) > 0).double()

    def train(without: int | None) -> tuple[Tensor, list[LoggedStep], list[LoggedStep]]:
        w, fisher, newton = torch.zeros(5, dtype=torch.float64), [], []
        for step in range(6):
            rows = [i for i in range(6 * step, 6 * step + 6) if i != without]
            p = (x[rows] @ w).sigmoid()
            gradients, shares = (p - y[rows])[:, None] * x[rows], torch.full((len(rows),), rate, dtype=torch.float64)
            fisher.append(LoggedStep(gradients, shares))
            newton.append(LoggedStep(gradients, shares, (p * (1 - p)).sqrt()[:, None] * x[rows], shares))
            w = w - rate * gradients.sum(0)
        return w, fisher, newton

    def loss(w: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(target_x @ w, target_y)

    w, *logs = train(None)
    left_out = [float(loss(train(i)[0]) - loss(w)) for i in range(36)]
    gradient = torch.autograd.functional.jacobian(loss, w)
    values = [torch.cat(embed(log).embeddings) @ gradient for log in logs]
    first, second = (float(spearmanr(v.tolist(), left_out).statistic) for v in values)
    return first, second


def test_values_rank_rows_as_leaving_each_out_of_its_step_does():
    """The Gauss-Newton matrix does so on every problem; the Fisher matrix on most, where steps are small."""
    found = np.array([leave_one_out(10 * i, rate=0.1) for i in range(6)])  # (6, 2)
    assert found.mean(0)[0] > 0.9
    assert found[:, 0].min() > 0.8
    assert found[:, 1].min() > 0.95


def test_steps_of_no_length_move_nothing():
    steps = [step if s < 3 else step._replace(shares=step.shares * 0) for s, step in enumerate(logged())]
    found = embed(steps).embeddings
    assert torch.equal(found[2], steps[2].shares[:, None] * steps[2].gradients)
    assert not any(bool(step.any()) for step in found[3:])


def test_a_recursion_that_diverges_is_refused():
    with pytest.raises(ConfigError, match=r"diverge[\s\S]*step 1[0-9]"):
        embed(logged(steps=20, scale=3.0))
    with pytest.raises(ConfigError, match="diverge"):
        embed([LoggedStep(torch.full((1, 2), torch.inf), torch.ones(1).double())])


def test_a_log_of_a_run_gives_sums_over_the_steps_of_a_row():
    log, index = EmbeddingLog(by=BY), index_of([9])
    steps, ids = logged(steps=4, rows=3, d=5), [[4, 0, 7], [7, 4, 4], [1, 0, 2], [0, 1, 7]]
    tokens, rate = torch.tensor([2, 1, 1]), 0.5
    state = log.init(index)
    assert log.gives(state, index) == {}
    for step, rows in zip(steps, ids, strict=True):
        seen = seeing_gradients(BY, step.gradients, None, ids=rows, rows=9, tokens=tokens.tolist(), lr=rate)
        state = log.observe(state, seen)
    state = type(state)(**state._asdict())  # as a checkpoint does
    given = log.gives(state, index)
    scaled = [LoggedStep(step.gradients.float(), rate * tokens.double() / 4) for step in steps]
    expected = torch.zeros(9, 5).double()
    for rows, found in zip(ids, embed(scaled).embeddings, strict=True):
        expected.index_add_(0, torch.tensor(rows), found)
    assert given["embedded"].tolist() == [0, 1, 2, 4, 7]
    assert torch.allclose(given["embeddings"].double(), expected[given["embedded"]], atol=1e-7)


def test_without_the_learning_rate():
    log, index = EmbeddingLog(by=BY, lr_mode="none"), index_of([3])
    step = logged(steps=1, rows=3)[0]
    state = log.observe(log.init(index), seeing_gradients(BY, step.gradients, None, lr=0.125))
    assert torch.allclose(log.gives(state, index)["embeddings"], step.gradients.float())


def test_a_log_that_would_be_too_large_is_refused_before_the_first_step():
    batch = dataclasses.replace(weighing([0] * 4, total_steps=1000), values={BY: torch.zeros(4, 1000)})
    losses = torch.tensor([1.0, 2, 3, 4])
    log = EmbeddingLog(by=BY, max_mb=16)
    assert log.weigh(log.init(batch.index), losses, batch).tolist() == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"16 MB: 1000 steps x 4 rows x 1000 numbers"):
        EmbeddingLog(by=BY, max_mb=15).weigh(log.init(batch.index), losses, batch)
    with pytest.raises(ConfigError, match="blocks=3"):
        EmbeddingLog(by=BY, blocks=3).weigh(log.init(batch.index), losses, batch)


@dataclass(frozen=True)
class TargetMeter:
    """A meter whose target rows have known gradients under one finished run. It is its own target set."""

    gradients: Tensor
    path: str | None = None

    @property
    def index(self) -> PoolIndex:
        return index_of([6])

    @property
    def target(self) -> TargetMeter:
        return self

    def under(self, model: str) -> TargetMeter:
        return dataclasses.replace(self, path=model)

    def sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        assert self.path == "run" and sketch == Sketch(dimensions=3) and len(ids) == 6
        return self.gradients


def test_values_are_inner_products_with_the_target_of_the_last_parameters(tmp_path: Path):
    made, rows = drawn(0, 3, 3).float(), np.array([1, 4, 5])
    np.save(tmp_path / "e.npy", made.numpy())
    np.save(tmp_path / "r.npy", rows)
    signal = EmbeddedValue(
        embeddings=str(tmp_path / "e.npy"), embedded=str(tmp_path / "r.npy"), run="run", sketch=Sketch(dimensions=3)
    )
    gradients = drawn(1, 6, 3).float()
    got = signal.measure(TargetMeter(gradients), torch.tensor([5, 0, 1]))  # type: ignore[arg-type]
    expected = made.double() @ gradients.double().mean(0)
    assert got[[0, 2]].tolist() == pytest.approx(expected[[2, 0]].tolist())
    assert bool(got[1].isnan())
    with pytest.raises(ConfigError, match="another sketch"):
        signal.measure(TargetMeter(gradients[:, :2]), torch.tensor([5]))  # type: ignore[arg-type]
    assert signal.models() == ("run",)


class Head(torch.nn.Module):
    """Known features of 7 tokens, and a linear head on them that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", drawn(4, 7, 3).float())
        self.head = torch.nn.Linear(3, 7, bias=False)
        self.head.weight.data = drawn(5, 7, 3).float()

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=self.head(self.features[input_ids]))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sketches_at_labels_drawn_are_factors_of_the_gauss_newton_matrix(reduction):
    """Over 4,000 draws of one row of four positions, the second without a target, against the closed form."""
    model, draws = Head(), 4000
    inputs, targets = torch.tensor([[1, 5, 2, 6]]), torch.tensor([[5, -100, 6, 0]])
    sketch = Sketch(kind="whole", labels="drawn", reduction=reduction)
    rows, ids = (inputs.expand(draws, -1), targets.expand(draws, -1), None), torch.arange(draws)
    found = Sketcher(model, sketch, chunk=64)(*rows, ids=ids).double()  # (draws, 21)
    expected = torch.zeros(21, 21, dtype=torch.float64)
    for token in inputs[0, [0, 2, 3]]:
        h = model.features[token].double()
        p = (model.head.weight.double() @ h).softmax(0).detach()
        expected += torch.kron(p.diag() - torch.outer(p, p), torch.outer(h, h)) / (3 if reduction == "mean" else 1)
    products = found[:, :, None] * found[:, None, :]
    deviation = (products.mean(0) - expected) / (products.std(0) / draws**0.5).clamp(min=1e-9)
    assert deviation.abs().max() < 5  # standard errors; 441 entries
    assert (found.mean(0) / (found.std(0) / draws**0.5)).abs().max() < 4.5
    assert expected.norm() > 5 * (products.std(0) / draws**0.5).norm()  # or it would have shown nothing
    loop = Sketcher(model, dataclasses.replace(sketch, backend="loop"), chunk=64)
    assert torch.allclose(loop(inputs, targets, None, ids=ids[:1]).double(), found[:1], atol=1e-6)


def test_labels_drawn_depend_on_the_row_alone():
    model = Head()
    inputs, targets = torch.tensor([[1, 5, 2], [3, 0, 0]]), torch.tensor([[-100, 2, 6], [4, -100, -100]])

    def labels(rows: list[int], length: int, seed: int = 0) -> list[list[int]]:
        given = (inputs[rows, :length], targets[rows, :length], None)
        return drawn_labels(model, *given, ids=torch.tensor(rows) + 40, seed=seed, chunk=2).tolist()

    both = labels([0, 1], 3)
    assert both[0][0] == -100 and both[1][1:] == [-100, -100]
    assert labels([1, 0], 3) == both[::-1]
    assert labels([1], 1) == [both[1][:1]]
    assert len({str(labels([0, 1], 3, seed)) for seed in range(20)}) > 10


def test_a_log_with_the_gauss_newton_matrix():
    log, index = EmbeddingLog(by=BY, curvature="ggn"), index_of([9])
    by, factors_by = log.needs()
    assert by == BY and isinstance(factors_by, GradientSketch) and factors_by.sketch.labels == "drawn"
    steps, other, rate = logged(steps=4, rows=3, d=5), logged(steps=4, rows=3, d=5, scale=0.3)[::-1], 0.5
    state = log.init(index)
    for number, (step, factors) in enumerate(zip(steps, other, strict=True)):
        seen = seeing_gradients(BY, step.gradients, None, ids=[number, 4 + number, 8], rows=9, lr=rate)
        state = log.observe(state, dataclasses.replace(seen, values={**seen.values, factors_by: factors.gradients}))
    shares = torch.full((3,), rate / 3).double()
    expected = embed(
        [
            LoggedStep(a.gradients.float(), shares, b.gradients.float(), shares)
            for a, b in zip(steps, other, strict=True)
        ]
    ).embeddings
    given = log.gives(state, index)
    assert given["embedded"].tolist() == list(range(9))
    assert torch.allclose(given["embeddings"][:4].double(), torch.stack([e[0] for e in expected]), atol=1e-7)
    assert torch.allclose(given["embeddings"][8].double(), torch.stack([e[2] for e in expected]).sum(0), atol=1e-7)
    batch = dataclasses.replace(weighing([0] * 4, total_steps=1000), values={BY: torch.zeros(4, 1000)})
    with pytest.raises(ConfigError, match=r"32 MB: 1000 steps x 8 rows"):
        dataclasses.replace(log, max_mb=31).weigh(log.init(batch.index), torch.ones(4), batch)


@pytest.mark.parametrize(
    "fields",
    [
        {"lr_mode": "half"},
        {"curvature": "hessian"},
        {"blocks": 0},
        {"max_mb": 0},
        {"reduction": "sum"},
        {"by": GradientSketch(sketch=Sketch(adam="outside"))},
        {"by": GradientSketch(sketch=Sketch(labels="drawn"))},
    ],
)
def test_wrong_settings_are_refused(fields):
    with pytest.raises(ConfigError):
        EmbeddingLog(**fields)
    with pytest.raises(ConfigError):
        EmbeddedValue(embeddings="e.npy", embedded="r.npy")
