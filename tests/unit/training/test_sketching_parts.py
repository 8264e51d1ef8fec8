"""The parts of sketches: folds on the CPU and as on a GPU, in pieces; norm layers that are found by what they do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from regimen.training.factors import Factors
from regimen.training.folding import Fold, Whole, _add_at_once, _add_by_block
from regimen.training.taps import Taps


def fold(size: int, d: int, *, name: str = "w", seed: int = 0, **others: int) -> Fold:
    shapes = {name: torch.Size([size]), **{other: torch.Size([n]) for other, n in others.items()}}
    return Fold(shapes, dimensions=d, seed=seed, device="cpu")


def folded(made: Fold, values: torch.Tensor, *cuts: int, name: str = "w") -> torch.Tensor:
    out = made.empty(len(values))
    for start, stop in zip((0, *cuts), (*cuts, values.shape[1]), strict=True):
        made.add(out, name, start, values[:, start:stop])
    return made.finish(out)


@pytest.mark.parametrize(("size", "d"), [(100, 16), (96, 16), (7, 16), (16, 16), (5, 1), (1, 3)])
def test_the_fold_is_a_matrix_of_one_sign_per_number_whatever_the_pieces(size: int, d: int) -> None:
    made = fold(size, d)
    matrix = folded(made, torch.eye(size))  # (size, d): where each number goes
    assert ((matrix != 0).sum(1) == 1).all() and (matrix.abs().sum(1) == 1).all()
    for block in matrix.abs().split(d):
        assert (block.sum(0) <= 1).all(), "numbers of a block do not meet"
    values = torch.randn(3, size)
    for cuts in ((), (1,), (size // 3, size // 2)):
        cuts = tuple(c for c in cuts if 0 < c < size)
        torch.testing.assert_close(folded(made, values, *cuts), values @ matrix)
    places, some = torch.randint(0, size, (3, 9)), torch.randn(3, 9)
    dense = torch.zeros(3, size).scatter_add_(1, places, some)
    out = made.empty(3)
    made.scatter(out, "w", places, some)
    torch.testing.assert_close(made.finish(out), dense @ matrix)


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 7), (5, 40), (33, 100), (16, 32)])
def test_the_gpu_adds_what_the_cpu_adds(start: int, stop: int) -> None:
    d, draw = 16, torch.Generator().manual_seed(0)
    values, signs = torch.randn(3, stop - start), torch.randint(0, 2, (stop - start,)).float() * 2 - 1
    shifts = torch.randint(0, d, (7,), generator=draw)
    folds = []
    for add in (_add_by_block, _add_at_once):
        out = torch.zeros(3, 2 * d)
        add(out, values, signs, shifts, start)
        folds.append(out[:, :d] + out[:, d:])
    torch.testing.assert_close(*folds)


def test_signs_depend_on_seed_name_and_shape_alone() -> None:
    values = torch.randn(2, 50)
    plain = folded(fold(50, 8), values)
    assert torch.equal(plain, folded(fold(50, 8, other=30), values))
    others = (folded(fold(50, 8, seed=1), values), folded(fold(50, 8, name="v"), values, name="v"))
    assert not any(torch.equal(plain, other) for other in others)


def test_columns_do_not_meet_in_few_places() -> None:
    """A matrix whose width divides d, a gradient in one of its columns: without shifts 4 places for 1024 numbers."""
    d, columns, rows = 64, 16, 1024
    made = Fold({"w": torch.Size([rows, columns])}, dimensions=d, seed=0, device="cpu")
    column = torch.zeros(1, rows, columns)
    column[:, :, 3] = 1
    assert int((folded(made, column.flatten(1)) != 0).sum()) > d / 2
    errors = []
    for seed in range(200):
        made = Fold({"w": torch.Size([rows, columns])}, dimensions=d, seed=seed, device="cpu")
        errors.append(float(folded(made, column.flatten(1)).square().sum()) / rows - 1)
    found = torch.tensor(errors)
    assert abs(float(found.mean())) < 4 * (2 / d / 200) ** 0.5, "unbiased"
    assert float(found.square().mean()) < 1.3**2 * 2 / d


def test_whole_puts_parameters_one_after_the_other() -> None:
    made = Whole({"a": torch.Size([2, 2]), "b": torch.Size([3])}, device="cpu")
    out = made.empty(1)
    made.add(out, "b", 1, torch.tensor([[6.0, 7.0]]))
    made.add(out, "a", 0, torch.tensor([[1.0, 2.0, 3.0]]))
    made.add(out, "a", 2, torch.tensor([[1.0, 4.0]]))
    assert made.dimensions == 7 and made.finish(out).tolist() == [[1, 2, 4, 4, 0, 6, 7]]


@pytest.mark.parametrize("ids", [True, False])
def test_factors_give_parts_and_projections_of_their_product(ids: bool) -> None:
    torch.manual_seed(0)
    one_hot = torch.randint(0, 6, (2, 5))
    left, right = (one_hot if ids else torch.randn(2, 5, 6)), torch.randn(2, 5, 3)
    dense = nn.functional.one_hot(one_hot, 6).float() if ids else left
    whole = torch.einsum("btr,btc->brc", dense, right)
    factors = Factors(left, right)
    for start, stop in ((0, 6), (2, 5), (5, 6)):
        into = torch.full((2, stop - start, 3), torch.nan)
        factors.add_part(into, start, first=True)
        torch.testing.assert_close(into, whole[:, start:stop])
        factors.add_part(into, start, first=False)
        torch.testing.assert_close(into, 2 * whole[:, start:stop])
    a, b = torch.randn(6, 4), torch.randn(3, 4)
    torch.testing.assert_close(factors.projected(a, b), a.T @ whole @ b)


class Halves(nn.Module):
    """Called a norm, but it is none: its weight acts as a square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight**2


class HalvesNorm(Halves):
    pass


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(6), nn.LayerNorm(6, bias=False), nn.RMSNorm(6), nn.RMSNorm(6, eps=0.5), GemmaRMSNorm(6)],
    ids=lambda norm: repr(norm),
)
def test_norms_are_known_by_what_they_do(norm: nn.Module) -> None:
    torch.manual_seed(0)
    for p in norm.parameters():
        nn.init.normal_(p)
    x, target = torch.randn(3, 4, 6), torch.randn(6)

    def losses(rows: torch.Tensor) -> torch.Tensor:
        return (norm(rows) @ target).sin().sum(1)

    found = {}
    taps = Taps(norm, dict(norm.named_parameters()))
    taps.differentiate(lambda: losses(x), 3, lambda name, factors, _: found.update({name: factors.left[:, 0]}))
    for name, p in norm.named_parameters():
        each = torch.stack([torch.autograd.grad(losses(x[i : i + 1]).sum(), p)[0] for i in range(3)])
        torch.testing.assert_close(found[name], each)


@pytest.mark.parametrize("norm", [HalvesNorm(), nn.BatchNorm1d(6), nn.GroupNorm(2, 6)], ids=lambda norm: repr(norm))
def test_what_only_looks_like_a_norm_is_refused(norm: nn.Module) -> None:
    from regimen.core.errors import ConfigError

    with pytest.raises(ConfigError, match="not known"):
        Taps(norm, dict(norm.named_parameters()))
