"""Per-row gradient sketches: exact where they are, Johnson-Lindenstrauss where they are not, and Adam's direction.

A fold of d numbers has an error of about 1 / sqrt(d) in a cosine; a projection of both factors to rank k one of about
2 / sqrt(k) per layer. LESS, arXiv 2402.04333, is held against explicit formulas with the moments of a real AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regimen.core.measuring import Sketch
from regimen.training.folding import Fold
from regimen.training.ghost import RowGradients, dots_with, ghost_dots, ghost_pays, squared_norms
from regimen.training.sketching import Moments, Sketcher, row_losses
from tests.support.gradients import MODELS, Rows, adapted, by_backward, gpt2, llama, qwen2, rows, tied

PARTS = ["", "mlp"]


def sketched(model: nn.Module, sketch: Sketch, given: Rows, *, moments: Moments | None = None) -> Tensor:
    return Sketcher(model, sketch, moments=moments, chunk=8)(given.inputs, given.targets, None)


def cosines(rows: Tensor) -> Tensor:
    """Of all pairs, (n (n - 1) / 2,)."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    places = torch.triu_indices(len(rows), len(rows), 1)
    return (unit @ unit.T)[places[0], places[1]]


@pytest.mark.parametrize("d", [64, 256])
def test_cosines_of_folds_are_unbiased_with_an_error_below_that_of_random_signs(d: int) -> None:
    model, given = tied(), rows(lengths=(11, 7, 4, 9, 11, 11, 6, 10))
    exact = cosines(by_backward(model, given))
    errors = torch.stack([cosines(sketched(model, Sketch(dimensions=d, seed=s), given)) - exact for s in range(20)])
    assert float(errors.square().mean().sqrt()) < 1.3 / math.sqrt(d)
    # The errors of a seed are dependent, so the mean over all pairs is held against their spread over seeds.
    assert abs(float(errors.mean())) < 4 * float(errors.mean(1).std()) / math.sqrt(20)
    assert float(exact.abs().max()) > 0.05, "there is something to be biased about"


def test_inner_products_of_folds_are_unbiased() -> None:
    model, given = gpt2(), rows()
    whole = by_backward(model, given).double()
    found = []
    for seed in range(40):
        made = sketched(model, Sketch(dimensions=32, seed=seed), given).double()
        found.append(made @ made.T)
    off = torch.stack(found).mean(0) - whole @ whole.T
    scale = whole.norm(dim=1)
    assert float((off.abs() / (scale[:, None] * scale)).max()) < 4.5 * math.sqrt(2 / 32 / 40)


def test_equal_seeds_share_signs_and_others_do_not() -> None:
    model, (a, b) = llama(), (rows(1), rows(2))
    one, two = sketched(model, Sketch(), a), sketched(model, Sketch(seed=1), a)
    assert torch.equal(one, sketched(model, Sketch(), a))
    same, crossed = (
        torch.nn.functional.cosine_similarity(x, y) for x, y in ((one, sketched(model, Sketch(), b)), (one, two))
    )
    exact = torch.nn.functional.cosine_similarity(by_backward(model, a), by_backward(model, b))
    torch.testing.assert_close(same, exact, atol=0.05, rtol=0)
    assert float(crossed.abs().max()) < 0.05, "a row and itself under other signs have nothing in common"


def test_a_sketch_is_linear() -> None:
    """In the gradient; and what is chosen besides does not change the signs of a parameter."""
    model, given = qwen2(), rows()
    names = [name for name, _ in model.named_parameters()]
    whole = sketched(model, Sketch(dimensions=32), given)
    parts = sum(sketched(model, Sketch(dimensions=32, parameters=f"^{name}$"), given) for name in names)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    again = Rows(*(torch.cat([x[:1]] * 2, 1)[:, :11] for x in given))
    torch.testing.assert_close(sketched(model, Sketch(dimensions=32), again)[0], whole[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rank", [4, 16])
def test_factored_sketches_are_unbiased_with_the_error_of_two_projections(rank: int) -> None:
    """For one layer the variance of an inner product is at most ((1 + 2 / k)^2 - 1) |x|^2 |y|^2, about 4 / k."""
    model, given = llama(), rows()
    part = r"layers\.1\.mlp\.down"
    whole = by_backward(model, given, parameters=part).double()
    norms = whole.norm(dim=1)
    errors = []
    for seed in range(30):
        made = sketched(model, Sketch(kind="factored", rank=rank, seed=seed, parameters=part), given).double()
        errors.append((made @ made.T - whole @ whole.T) / (norms[:, None] * norms))
    found = torch.stack(errors)
    off = ~torch.eye(len(norms), dtype=torch.bool)
    spread = float(found[:, off].square().mean().sqrt())
    assert 0.2 * 2 / math.sqrt(rank) < spread < 1.3 * 2 / math.sqrt(rank)
    assert abs(float(found[:, off].mean())) < 4 * float(found[:, off].mean(1).std()) / math.sqrt(30)


def trained(make: Callable[[], nn.Module]) -> tuple[nn.Module, Moments]:
    """A model after some steps of AdamW, and its optimizer's moments."""
    model, given = make(), rows(seed=9)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=1e-3, betas=(0.8, 0.95), eps=1e-6)
    for _ in range(4):
        row_losses(model, given.inputs, given.targets, None, reduction="mean", chunk=8).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    first, second = (
        {name: optimizer.state[p][key] for name, p in zip(names, chosen, strict=True)}
        for key in ("exp_avg", "exp_avg_sq")
    )
    return model, Moments(first, second, (0.8, 0.95), 1e-6)


@pytest.mark.parametrize("backend", ["hooks", "loop"])
@pytest.mark.parametrize("make", [qwen2, tied, gpt2, adapted])
@pytest.mark.parametrize("adam", ["inside", "outside", "scaled"])
def test_adams_direction_is_the_formula(make: Callable[[], nn.Module], adam: str, backend: str) -> None:
    """With gradients, moments and formula in float64. A tied parameter's two gradients are one before the square."""
    model, moments = trained(make)
    gradient = by_backward(model, rows(), double=True)
    m, v = (torch.cat([x.double().flatten() for x in of.values()]) for of in moments[:2])
    (b1, b2), eps = moments.betas, moments.eps
    up, square = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    expected = {
        "inside": up / (square + eps).sqrt(),
        "outside": up / (square.sqrt() + eps),
        "scaled": gradient / (v.sqrt() + eps),
    }[adam]
    found = sketched(model, Sketch(kind="whole", adam=adam, backend=backend), rows(), moments=moments)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    fold = Sketcher(model, Sketch(dimensions=64, adam=adam, backend=backend), moments=moments, chunk=8)
    out, start = fold._sink.empty(4), 0
    for name, p in fold.chosen.items():
        fold._sink.add(out, name, 0, expected[:, start : start + p.numel()].float())
        start += p.numel()
    made = fold(*rows(), None)
    assert float((made - fold._sink.finish(out)).norm() / made.norm()) < 1e-4


def test_inside_and_outside_are_different_directions() -> None:
    model, moments = trained(tied)
    inside, outside = (
        sketched(model, Sketch(kind="whole", adam=a), rows(), moments=moments) for a in ("inside", "outside")
    )
    assert float(torch.nn.functional.cosine_similarity(inside, outside).max()) < 0.99


def gradients(model: nn.Module, given: Rows, parameters: str = "") -> RowGradients:
    return RowGradients(model, given.inputs, given.targets, None, parameters=parameters, chunk=8)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("always", [True, False, None])
def test_ghost_products_are_those_of_whole_gradients(
    make: Callable[[], nn.Module], always: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of every parameter; and of rows of another length, as a target set has."""
    model, given, others = make(), rows(), rows(5, lengths=(6, 3, 5))
    if always is not None:
        monkeypatch.setattr("regimen.training.ghost.ghost_pays", lambda *_: always)
    mine, theirs = by_backward(model, given, double=True), by_backward(model, others, double=True)
    found = ghost_dots(gradients(model, given), gradients(model, others))
    scale = mine.norm(dim=1)[:, None] * theirs.norm(dim=1)
    assert found.shape == (4, 3) and float(((found - mine @ theirs.T).abs() / scale).max()) < 1e-5
    torch.testing.assert_close(squared_norms(gradients(model, given)), mine.square().sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("parameters", PARTS)
def test_products_with_one_gradient(parameters: str) -> None:
    model, given = tied(), rows()
    whole = by_backward(model, given, parameters=parameters)
    read = gradients(model, given, parameters)
    chosen = [(name, p) for name, p in model.named_parameters() if name in read.shapes]
    parts = whole.mean(0).split([p.numel() for _, p in chosen])
    mean = {name: part.view_as(p) for (name, p), part in zip(chosen, parts, strict=True)}
    torch.testing.assert_close(dots_with(mean, read), (whole @ whole.mean(0)).double(), rtol=1e-4, atol=1e-6)


def test_the_rule_when_ghosts_pay() -> None:
    assert ghost_pays(8, 8, (16, 8)) and not ghost_pays(8, 9, (16, 8))
    assert ghost_pays(256, 256, (8192, 256)) and not ghost_pays(256, 256, (256, 256))


def test_a_fold_to_8192_has_the_stated_error() -> None:
    """Cosines of vectors of several matrices, 120,000 numbers in all: rmse at most .013 and a bias below .001."""
    shapes = {name: torch.Size(shape) for name, shape in (("a", (300, 200)), ("b", (128, 400)), ("c", (8800,)))}
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(1, 120_000, generator=draw)
    vectors = torch.randn(16, 120_000, generator=draw) + torch.linspace(0, 1, 16)[:, None] * common
    exact, errors = cosines(vectors), []
    for seed in range(6):
        fold = Fold(shapes, dimensions=8192, seed=seed, device="cpu")
        out, start = fold.empty(16), 0
        for name, shape in shapes.items():
            fold.add(out, name, 0, vectors[:, start : start + shape.numel()])
            start += shape.numel()
        errors.append(cosines(fold.finish(out)) - exact)
    found = torch.stack(errors)
    assert float(found.square().mean().sqrt()) <= 0.013
    assert abs(float(found.mean())) < 0.001


def test_gradients_below_the_smallest_half_keep_their_direction() -> None:
    """Near 1e-9, where half precision has 0 (LESS's code makes it of them): a last norm that shrinks all states."""
    model, given = llama(), rows()
    with torch.no_grad():
        model.model.norm.weight.mul_(1e-9)
    part = r"lm_head|layers"
    exact = by_backward(model, given, parameters=part, double=True)
    assert 0 < float(exact.abs().max()) < 6e-8
    for backend in ("hooks", "loop"):
        found = sketched(model, Sketch(kind="whole", parameters=part, backend=backend), given)
        assert float(torch.nn.functional.cosine_similarity(1e9 * found.double(), 1e9 * exact).min()) > 1 - 1e-6
