"""Small causal models and tokenizers, and the language of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from regimen.data.settings import TokenizerSettings
from regimen.data.tokenizer import build, save
from regimen.training.language import ModelLanguage
from regimen.training.passes import Passes

TEXTS = [
    "the cat, the hat.\n\nAnd then?",
    "na\u00efve caf\u00e9 \u2014 \u6f22\u5b57 \U0001f600!",
    "1. yes 2. no 10,000",
]
CONTEXT = 96


def tokenizer_at(folder: Path, kind: str = "bytes") -> Any:
    """A tokenizer of the project, written to `folder`."""
    tokenizer = build(TokenizerSettings(kind=kind, vocab_size=300), TEXTS * 20)
    folder.mkdir(parents=True, exist_ok=True)
    save(tokenizer, folder)
    return tokenizer


def tiny(
    architecture: str = "qwen2", *, vocab: int = 258, context: int = CONTEXT, layers: int = 3, attention: str = "sdpa"
) -> nn.Module:
    """A model whose weights are large enough that what it says depends on all it has read."""
    extra: dict[str, Any] = {} if architecture == "gpt2" else {"intermediate_size": 40}
    if architecture in ("qwen2", "mistral"):
        extra["num_key_value_heads"] = 2
    if architecture == "mistral":
        extra["sliding_window"] = 6
    config = AutoConfig.for_model(
        architecture,
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        **extra,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def language_of(model: nn.Module, tokenizer: Path, *, template: str = "alpaca", tokens: int = 4096) -> ModelLanguage:
    """The language of a model. tokens: of a part of the prompts."""
    return ModelLanguage(
        model,
        tokenizer=tokenizer,
        template=template,
        end=0,
        context=model.config.max_position_embeddings,
        passes=Passes(tokens=tokens),
    )
