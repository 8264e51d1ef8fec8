"""Hidden states of a causal language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from regimen.training.parameters import spread
from regimen.training.predictions import cuts


def base_output(model: nn.Module, **given: Any) -> Any:
    """What the model without its head gives, with `last_hidden_state` and, where asked for, `hidden_states`.

    Where ranks hold parts of the model it is called as a whole, since the embedding is gathered with the head.
    """
    base: Any = model.base_model
    if not spread(model):
        return base(**given)
    found: list[Any] = []
    handle = base.register_forward_hook(lambda module, read, output: found.append(output))
    try:
        model(**given, **({"logits_to_keep": 1} if cuts(model) else {}))
    finally:
        handle.remove()
    return found[0]
