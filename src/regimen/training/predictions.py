"""Token losses of rows without logits that no loss needs, and with a CPU's cache in mind.

Letters: b rows, L positions, V vocabulary.
"""

from __future__ import annotations

import inspect

from torch import Tensor, nn
from torch.nn import functional as F

from regimen.training.cross_entropy import IGNORE, token_losses

_LOGITS = 2**20  # that are upcast at a time on a CPU: about what fits a core's cache


def predicted_losses(
    model: nn.Module, inputs: Tensor, targets: Tensor, positions: Tensor | None, *, chunk: int
) -> Tensor:
    """(b, L) float32 losses of targets (b, L) under `model`, which reads inputs (b, L); 0 where nothing is predicted.

    Logits of the positions before the first target of all rows are not made: examples begin with their prompts.
    chunk: tokens whose logits are upcast at a time, at most.
    """
    first, logits = predicted_logits(model, inputs, targets, positions)
    if logits.device.type == "cpu":
        chunk = min(chunk, max(16, _LOGITS // logits.shape[-1]))
    return F.pad(token_losses(logits, targets[:, first:], chunk=chunk), (first, 0))


def predicted_logits(model: nn.Module, inputs: Tensor, targets: Tensor, positions: Tensor | None) -> tuple[int, Tensor]:
    """The first position f at which a row has a target, or 0, and logits (b, L - f, V) from there on."""
    first = _first(targets) if cuts(model) else 0
    cut = {"logits_to_keep": targets.shape[1] - first} if first else {}
    return first, model(input_ids=inputs, position_ids=positions, use_cache=False, **cut).logits


def _first(targets: Tensor) -> int:
    """The first position at which a row has a target; the last one where none has."""
    learnt = (targets != IGNORE).any(0)  # (L,)
    learnt[-1:] = True
    return int(learnt.int().argmax())


def cuts(model: nn.Module) -> bool:
    """Whether the model can be asked for the logits of the last positions alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
