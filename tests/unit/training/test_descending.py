"""The co-state walk on real language models: their curvature, every backend, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regimen.core.descent import Descent
from regimen.core.errors import ConfigError
from regimen.training.co_state import gradient, hessian_product
from regimen.training.descending import FlatModel, drawn, refuse_attention
from tests.support.gradients import MODELS, by_backward, gpt2, llama, qwen2, rows


def flat_of(make: Callable[[], nn.Module]) -> tuple[FlatModel, tuple[Tensor, Tensor, None], Tensor]:
    """A model in double precision, ragged rows, and a direction."""
    flat, given = FlatModel(make().double()), rows()
    draw = torch.Generator().manual_seed(5)
    return flat, (given.inputs, given.targets, None), torch.randn(flat.start.shape, generator=draw).double()


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_backends_agree_with_plain_gradients(make: Callable[[], nn.Module]) -> None:
    flat, given, vector = flat_of(make)
    wanted = by_backward(make(), rows(), double=True)  # (b, P)
    wanted = torch.stack([wanted @ vector, wanted.norm(dim=1)], 1)
    exact, near = (1e-9, 1e-5) if make is gpt2 else (1e-4, 1e-2)  # RMSNorm and rotations are in single precision
    for backend, tolerance in (
        ("loop", exact),
        ("jvp", exact),
        ("finite_difference", near),
        ("ghost", 1e-5 if make is gpt2 else exact),
    ):
        with sdpa_kernel(SDPBackend.MATH):
            descent = Descent(backend=backend, epsilon=1e-4 if make is gpt2 else 0.01)
            found = flat.products(flat.start, vector, given, descent, norms=True)
        assert found.dtype == torch.float64
        assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance), backend


@pytest.mark.parametrize("make", [qwen2, llama], ids=lambda make: make.__name__)
def test_vmap_agrees(make: Callable[[], nn.Module]) -> None:
    flat, given, vector = flat_of(make)
    with sdpa_kernel(SDPBackend.MATH):
        a, b = (
            flat.products(flat.start, vector, given, Descent(backend=backend), norms=True)
            for backend in ("vmap", "loop")
        )
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_curvature_by_double_backward_is_that_of_differences(make: Callable[[], nn.Module]) -> None:
    flat, given, vector = flat_of(make)
    parts = [lambda theta: flat.losses(theta, given).mean()]
    with sdpa_kernel(SDPBackend.MATH):
        exact = hessian_product(parts, flat.start, vector, Descent())
        epsilon = 1e-3 if make is gpt2 else 0.01
        near = hessian_product(parts, flat.start, vector, Descent(hessian="finite_difference", epsilon=epsilon))
        other = torch.randn_like(vector)
        swapped = hessian_product(parts, flat.start, other, Descent())
    tight, loose = (1e-9, 1e-5) if make is gpt2 else (1e-4, 1e-2)  # RMSNorm and rotations are in single precision
    assert float((exact - near).norm() / exact.norm()) < loose
    assert float(exact @ other) == pytest.approx(float(swapped @ vector), rel=tight)  # a Hessian is symmetric


def test_the_model_is_left_alone() -> None:
    model = llama(tie_word_embeddings=True)
    before = copy.deepcopy(model.state_dict())
    flat, given = FlatModel(model), rows()
    told = (given.inputs, given.targets, None)
    step = gradient([lambda theta: flat.losses(theta, told).mean()], flat.start)
    flat.products(flat.start - 0.1 * step, step, told, Descent(), norms=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert len(flat.start) == sum(p.numel() for p in model.parameters())  # the tied matrix once


def test_half_precision_descends_in_single() -> None:
    flat = FlatModel(qwen2().bfloat16(), r"layers\.1\.")
    assert flat.start.dtype == torch.float32
    assert set(flat.chosen) == {name for name, _ in qwen2().named_parameters() if "layers.1." in name}


def test_a_row_without_targets_has_no_gradient() -> None:
    flat, (inputs, targets, _), vector = flat_of(qwen2)
    targets = targets.clone()
    targets[1] = -100
    for backend in ("ghost", "loop", "jvp"):
        with sdpa_kernel(SDPBackend.MATH):
            found = flat.products(flat.start, vector, (inputs, targets, None), Descent(backend=backend), norms=True)
        assert torch.equal(found[1], torch.zeros(2).double()) and bool(found[[0, 2, 3]].all())


def test_steps_go_through_all_rows_before_one_comes_again() -> None:
    ids = drawn(10, Descent(steps=7, batch_rows=3))
    assert ids.shape == (7, 3)
    assert sorted(ids.flatten()[:10].tolist()) == sorted(ids.flatten()[10:20].tolist()) == list(range(10))
    assert torch.equal(ids, drawn(10, Descent(steps=7, batch_rows=3)))
    assert not torch.equal(ids, drawn(10, Descent(steps=7, batch_rows=3, seed=1)))


def test_fused_attention_is_refused_with_the_way_out() -> None:
    model = nn.Module()
    model.config = SimpleNamespace(_attn_implementation="flash_attention_2")
    for descent in (Descent(), Descent(hessian="none", backend="jvp")):
        with pytest.raises(ConfigError, match="attn_implementation=sdpa"):
            refuse_attention(model, descent)
    refuse_attention(model, Descent(hessian="finite_difference"))
