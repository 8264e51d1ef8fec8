"""A batch of prompts that a model reads and goes on writing, each as if it were alone.

Prompts are padded on the left, with a mask and with positions that count from each prompt's own begin, so that the last
column is the last token of all and one cache serves all: what is written depends on the batch by rounding alone. A
drawn token comes from its prompt's own generator.
Letters: b prompts, T tokens of the longest, V vocabulary, m most tokens to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError

UNWRITTEN = -1  # stands after the last token of an answer


class Sampling(NamedTuple):
    """How a next token is chosen. temperature: 0 takes the likeliest. top_k, top_p: draw from the likeliest alone."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def checked(self) -> Sampling:
        """Itself; ConfigError for a number out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature divides the logits", got=self.temperature, allowed="0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError("top_k counts tokens", got=self.top_k, allowed="1 or more, or null for all")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p is a probability", got=self.top_p, allowed="0 < top_p <= 1")
        return self

    def probabilities(self, logits: Tensor) -> Tensor:
        """(b, V) float64 from logits (b, V): the softmax over the top_k tokens, cut to its top_p and scaled to sum 1.

        Kept by top_p: the fewest likeliest tokens that together reach it. Equal tokens are ranked by number.
        """
        scaled, order = (logits.double() / self.temperature).sort(descending=True, stable=True)  # (b, V)
        if self.top_k is not None:
            scaled[:, self.top_k :] = -torch.inf
        ranked = scaled.softmax(-1)  # (b, V)
        ranked[ranked.cumsum(-1) - ranked >= self.top_p] = 0.0  # those before it reach top_p without it
        return torch.zeros_like(ranked).scatter_(1, order, ranked / ranked.sum(-1, keepdim=True))

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(b,) int64 tokens on the CPU, from logits (b, V)."""
        if self.temperature == 0:
            return logits.argmax(-1).cpu()
        rows = self.probabilities(logits.cpu())  # (b, V)
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(rows, generators, strict=True)])


class Reader:
    """Reads prompts (T_i,), and then token after token, with a cache of keys and values.

    padding: any token. context: positions that the model has; a prompt that is done may run past it, and stays at it.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], *, padding: int, context: int) -> None:
        self.model, self.last = model, context - 1
        width = max(map(len, prompts))
        self._tokens = torch.full((len(prompts), width), padding)  # (b, T)
        self._mask = torch.zeros_like(self._tokens)  # (b, T)
        for i, prompt in enumerate(prompts):
            self._tokens[i, width - len(prompt) :] = prompt
            self._mask[i, width - len(prompt) :] = 1
        self._cache: Any = None

    def read(self, device: torch.device | str, tokens: Tensor | None = None, *, cache: bool = True) -> Tensor:
        """Logits (b, V) float32 on `device` after the prompts, or after one more token (b,) of each.

        cache: whether more will be read.
        """
        if tokens is not None:
            self._tokens = tokens[:, None]  # (b, 1)
            self._mask = torch.cat([self._mask, torch.ones_like(self._tokens)], 1)
        places = (self._mask.cumsum(1) - 1).clamp(0, self.last)[:, -self._tokens.shape[1] :]  # (b, T) or (b, 1)
        out = self.model(
            input_ids=self._tokens.to(device),
            attention_mask=self._mask.to(device),
            position_ids=places.to(device),
            past_key_values=self._cache,
            use_cache=cache,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float()  # (b, V)
        return logits


def written(
    reader: Reader,
    limits: Tensor,
    *,
    most: int,
    device: torch.device | str,
    ends: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    everywhere: Callable[[bool], bool],
) -> Tensor:
    """What is written after each prompt, (b, m) int64, UNWRITTEN after its end.

    limits: (b,) most tokens of each, none above `most`. ends: tokens that end an answer and are no part of it.
    everywhere: whether something is so on all ranks, which must read equally often.
    """
    out = torch.full((len(limits), most), UNWRITTEN)  # (b, m)
    open_ = limits > 0  # (b,)
    logits = reader.read(device)
    for place in range(out.shape[1]):
        tokens = sampling.choose(logits, generators)  # (b,)
        open_ &= ~torch.isin(tokens, ends)
        out[open_, place] = tokens[open_]
        open_ &= place + 1 < limits
        if everywhere(not bool(open_.any())):
            break
        logits = reader.read(device, tokens)
    return out


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run as written: a compiled model would be compiled anew for every length that a text grows to."""
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield
