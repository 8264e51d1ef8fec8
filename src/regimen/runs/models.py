"""From `model=` to a causal language model, new or pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from regimen.core.errors import ConfigError
from regimen.data.pool import Pool


def make_model(settings: Mapping[str, Any], pool: Pool) -> nn.Module:
    """The model of a run, in float32, with room for the pool's vocabulary and row length.

    Raises ConfigError for an unknown architecture, a shape it refuses, a context shorter than the pool's rows, or
    pretrained weights with another vocabulary than the pool's tokenizer.
    """
    model = _pretrained(settings, pool) if settings["pretrained"] else _from_scratch(settings, pool)
    if settings["gradient_checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings["compile"]:
        model.compile()
    return model


def model_config(settings: Mapping[str, Any], pool: Pool) -> Any:
    """The Hugging Face configuration of a new model."""
    from transformers import CONFIG_MAPPING, AutoConfig

    name = settings["architecture"]
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            "unknown architecture", got=f"model.architecture={name}", allowed="a model type of transformers"
        )
    given = dict(settings["config"])
    context = given.get("max_position_embeddings", pool.seq_len)
    if context < pool.seq_len:
        raise ConfigError(
            "the rows of the pool are longer than the model's context",
            got=f"dataset.seq_len={pool.seq_len}, model.config.max_position_embeddings={context}",
            do="lower dataset.seq_len or raise model.config.max_position_embeddings",
        )
    ids = {"bos_token_id": pool.eos_id, "eos_token_id": pool.eos_id, "pad_token_id": pool.pad_id}
    return AutoConfig.for_model(name, vocab_size=pool.vocab_size, use_cache=False, **ids, **given)


def _from_scratch(settings: Mapping[str, Any], pool: Pool) -> Any:
    from transformers import AutoModelForCausalLM

    config = model_config(settings, pool)
    try:
        return AutoModelForCausalLM.from_config(config, attn_implementation=settings["attn_implementation"])
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"the {settings['architecture']} model cannot be built",
            got=str(error).splitlines()[0],
            do="look at model.config.* and model.attn_implementation",
        ) from error


def _pretrained(settings: Mapping[str, Any], pool: Pool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    path = settings["path"]
    if not path:
        raise ConfigError(
            "this model has no pretrained weights",
            got="model.pretrained=true, model.path=null",
            do="set model.path=NAME_OR_FOLDER, or model.pretrained=false",
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=settings["attn_implementation"]
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the pretrained model cannot be loaded",
            got=f"model.path={path}: {str(error).splitlines()[0]}",
            do="check the name or folder, and the connection or cache of the Hugging Face hub",
        ) from error
    rows = model.get_input_embeddings().weight.shape[0]
    if pool.vocab_size > rows:
        raise ConfigError(
            "the pool was prepared with a tokenizer that the pretrained model does not have",
            got=f"{pool.vocab_size} tokens in the pool's vocabulary, {rows} embeddings in {path}",
            do=f"add dataset.tokenizer.kind=hf dataset.tokenizer.path={path}",
        )
    model.config.use_cache = False
    return model
