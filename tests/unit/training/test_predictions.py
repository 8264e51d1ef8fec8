"""Losses without needless logits, and parts of a sweep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regimen.training.cross_entropy import IGNORE
from regimen.training.predictions import predicted_losses
from regimen.training.sweep import part_sizes
from tests.support.gradients import MODELS, Rows, rows


def prompted(prompt: int) -> Rows:
    """Rows whose first `prompt` positions predict nothing, one of them two more."""
    found = rows()
    targets = found.targets.clone()
    targets[:, :prompt] = IGNORE
    targets[0, : prompt + 2] = IGNORE
    return found._replace(targets=targets)


def plain(model: nn.Module, given: Rows) -> Tensor:
    logits = model(input_ids=given.inputs).logits  # (b, L, V)
    flat = F.cross_entropy(logits.flatten(0, 1), given.targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(given.targets.shape)


@pytest.mark.parametrize("prompt", [0, 1, 4, 1000])
@pytest.mark.parametrize("make", MODELS)
def test_losses_and_gradients_are_those_of_all_logits(make: Callable[[], nn.Module], prompt: int) -> None:
    model, given = make(), prompted(prompt)
    found = predicted_losses(model, given.inputs, given.targets, None, chunk=8)
    expected = plain(model, given)
    assert found.shape == given.targets.shape and torch.allclose(found, expected, atol=1e-5)
    assert bool((found[given.targets == IGNORE] == 0).all())
    if prompt == 1000:
        assert not bool(found.any())
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    mine, theirs = (torch.autograd.grad(losses.sum(), trained, allow_unused=True) for losses in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-5)


def test_logits_of_prompts_are_not_made() -> None:
    given, seen = prompted(3), []
    model = MODELS[0]()
    model.get_output_embeddings().register_forward_hook(lambda _, read, made: seen.append(made.shape[1]))
    predicted_losses(model, given.inputs, given.targets, None, chunk=8)
    assert seen == [given.inputs.shape[1] - 3]


def test_a_model_that_makes_all_logits_or_none() -> None:
    class Plain(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, use_cache: bool = False) -> object:
            return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    model, given = MODELS[0](), prompted(3)
    ours, other = (predicted_losses(m, given.inputs, given.targets, None, chunk=8) for m in (model, Plain(model)))
    assert torch.allclose(ours, other, atol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "most", "tokens", "sizes"),
    [
        ([3] * 7, 3, None, [3, 3, 1]),
        ([1, 2, 3, 4], 8, 8, [2, 2]),
        ([2, 2, 2, 20, 30], 2, 8, [2, 1, 1, 1]),
        ([0, 0], 5, 4, [2]),
        ([], 5, 4, []),
    ],
)
def test_parts_of_a_sweep(lengths: list[int], most: int, tokens: int | None, sizes: list[int]) -> None:
    assert part_sizes(torch.tensor(lengths, dtype=torch.int64), most=most, tokens=tokens) == sizes


def test_no_part_is_larger_than_allowed() -> None:
    lengths = torch.randint(1, 300, (500,), generator=torch.Generator().manual_seed(0)).sort().values
    sizes = part_sizes(lengths, most=32, tokens=1024)
    assert sum(sizes) == 500 and max(sizes) <= 32
    assert all(len(part) * int(part.max()) <= 1024 for part in lengths.split(sizes))
