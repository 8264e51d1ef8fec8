"""Where a layer looks: its attention weights, from models whose fast attention returns none.

The fused kernels never hold the weights, so the layers run with the plain implementation for one call. No layer after
the one asked for is run, unless ranks hold parts of the weights and must all finish a pass.
Letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.training.parameters import spread

_PLAIN = ("eager", "sdpa")  # kernels that have, or fall back to one that has, second derivatives and a forward mode


class _Seen(Exception):
    """The layer has been run; the rest of the pass is not needed."""


def attention_weights(model: nn.Module, tokens: Tensor, *, layer: int) -> Tensor:
    """Attention (T, T) float32 on the CPU of `layer`, from 0, summed over heads, for tokens (T,) on the model's device.

    Raises ConfigError where the model has no such layer, or none of its modules returns weights.
    """
    count, length = depth(model), len(tokens)
    if not 0 <= layer < count:
        raise ConfigError("the model has no such layer", got=f"layer={layer}", allowed=f"0 to {count - 1}")
    found: list[Tensor] = []
    whole = spread(model)

    def keep(module: nn.Module, given: Any, returned: Any) -> None:
        weights = returned[1] if isinstance(returned, tuple) and len(returned) > 1 else None
        if isinstance(weights, Tensor) and weights.dim() == 4 and weights.shape[-2:] == (length, length) and not found:
            found.append(weights[0].float().sum(0).cpu())  # (heads, T, T) -> (T, T)
            if not whole:
                raise _Seen

    handles = [module.register_forward_hook(keep) for module in layers(model, count)[layer].modules()]
    try:
        with _eager(model):
            model(input_ids=tokens[None], use_cache=False, logits_to_keep=1)
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        implementation = model.config._attn_implementation  # type: ignore[union-attr]
        raise ConfigError(
            "this model returns no attention weights",
            got=f"{type(model).__name__}, model.attn_implementation={implementation}",
            allowed="models that can be run with eager attention",
            do="type model.attn_implementation=eager, or sdpa; or choose a method that reads no attention",
        )
    return found[0]


def refuse_fused(model: nn.Module, got: str, *, do: str) -> None:
    """Raises ConfigError where the model's attention has neither a second derivative nor a forward mode.

    got: what needs one. do: how to do without.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    if kernel is not None and kernel not in _PLAIN:
        raise ConfigError(
            "fused attention has neither a second derivative nor a forward mode",
            got=f"{got}, model.attn_implementation={kernel}",
            allowed=f"model.attn_implementation={' or '.join(_PLAIN)}",
            do=f"{do}, or model.attn_implementation=sdpa",
        )


def depth(model: nn.Module) -> int:
    """Layers of a Hugging Face model."""
    return int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]


def layers(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of the model's layers: the first of that length, in the order in which modules are found."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ConfigError(
            "the layers of this model cannot be found",
            got=f"{type(model).__name__}, with no list of {count} modules",
            do="choose a model whose layers are a list, such as qwen2, llama, mistral or gpt2",
        )
    return lists[0]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """With the attention that returns weights, and afterwards with the one before; both where the model can switch."""
    before = model.config._attn_implementation
    if before != "eager":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before != "eager":
            model.set_attn_implementation(before)
