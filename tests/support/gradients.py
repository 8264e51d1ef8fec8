"""Tiny language models with every kind of layer, ragged rows, and each row's gradient by a plain backward pass."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from regimen.runs.lora import add_adapters
from regimen.training.cross_entropy import IGNORE

VOCABULARY = 40
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}


class Rows(NamedTuple):
    """inputs, targets (b, L) int64."""

    inputs: Tensor
    targets: Tensor


def rows(seed: int = 1, lengths: tuple[int, ...] = (11, 7, 4, 9)) -> Rows:
    """Ragged rows, padded on the right; of the first row the first three tokens are a prompt."""
    torch.manual_seed(seed)
    inputs, targets = torch.randint(0, VOCABULARY, (2, len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        inputs[row, length:], targets[row, length:] = 0, IGNORE
    targets[0, :3] = IGNORE
    return Rows(inputs, targets)


def shaken(model: nn.Module) -> nn.Module:
    """Parameters that start at 0 or 1, biases and scales, are somewhere else, so that a mistake there shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model.eval()


def qwen2(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return shaken(Qwen2ForCausalLM(Qwen2Config(**SHAPE, **changes)))


def llama(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(LlamaConfig(**SHAPE, **changes)))


def tied() -> nn.Module:
    return llama(tie_word_embeddings=True)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return shaken(
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ends))
    )


def adapted(*, trained: bool = True) -> nn.Module:
    """A Qwen2 with LoRA on all linear layers but the head, scaled by 4."""
    model = qwen2()
    torch.manual_seed(0)
    add_adapters(model, {"rank": 3, "alpha": 12, "dropout": 0.1, "targets": "all-linear"})
    if trained:
        torch.manual_seed(4)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.1)
    return model.eval()


MODELS: list[Callable[[], nn.Module]] = [qwen2, llama, tied, gpt2, adapted]


def by_backward(
    model: nn.Module, given: Rows, *, parameters: str = "", reduction: str = "mean", double: bool = False
) -> Tensor:
    """(b, P) gradients of each row's loss, by .backward() on a copy, row by row, without padding."""
    model = copy.deepcopy(model)
    if double:
        model = model.double()
    out = []
    for inputs, targets in zip(*given, strict=True):
        model.zero_grad()
        length = int((targets != IGNORE).nonzero().max()) + 1 if bool((targets != IGNORE).any()) else 0
        if length:
            logits = model(input_ids=inputs[None, :length], use_cache=False).logits[0]
            F.cross_entropy(logits, targets[:length], reduction=reduction, ignore_index=IGNORE).backward()
        chosen = [p for name, p in model.named_parameters() if p.requires_grad and re.search(parameters, name)]
        flat = [torch.zeros(p.numel()).to(p) if p.grad is None else p.grad.flatten() for p in chosen]
        out.append(torch.cat(flat))
    return torch.stack(out)
