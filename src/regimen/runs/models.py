"""From `model=` to a causal language model, new or pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from regimen.core.errors import ConfigError, closest
from regimen.data.pool import Pool
from regimen.runs.lora import add_adapters, lora_of


def make_model(settings: Mapping[str, Any], pool: Pool) -> nn.Module:
    """The model of a run, in float32, with room for the pool's vocabulary and row length, and its adapters if any.

    Raises ConfigError for an unknown architecture, a shape it refuses, a context shorter than the pool's rows, or
    pretrained weights with another vocabulary than the pool's tokenizer.
    """
    model = base_model(settings, pool)
    lora = lora_of(settings)
    if lora is not None:
        add_adapters(model, lora)
    model.train()  # a pretrained model comes in evaluation mode, with its dropout off
    if settings["gradient_checkpointing"]:
        # Renamed in transformers 5; the old name warns and goes in 6.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if lora is not None:
            model.enable_input_require_grads()  # the embedding is frozen, and what it gives passes checkpoints
    if settings["compile"]:
        model.compile()
    return model


def base_model(settings: Mapping[str, Any], pool: Pool) -> Any:
    """The model without adapters."""
    return _pretrained(settings, pool) if settings["pretrained"] else _from_scratch(settings, pool)


def model_config(settings: Mapping[str, Any], pool: Pool) -> Any:
    """The Hugging Face configuration of a new model."""
    from transformers import CONFIG_MAPPING, AutoConfig

    name = settings["architecture"]
    if name not in CONFIG_MAPPING:
        raise ConfigError(
            f"unknown architecture{closest(str(name), CONFIG_MAPPING)}",
            got=f"model.architecture={name}",
            allowed="a model type of transformers, such as qwen2, llama, mistral, gpt2",
            do="model.architecture=qwen2, or choose a model: model=nano",
        )
    given = dict(settings["config"])
    _refuse_unknown(name, given)
    context = given.get("max_position_embeddings", pool.seq_len)
    if context < pool.seq_len:
        raise ConfigError(
            "the rows of the pool are longer than the model's context",
            got=f"dataset.seq_len={pool.seq_len}, model.config.max_position_embeddings={context}",
            do="lower dataset.seq_len or raise model.config.max_position_embeddings",
        )
    ids = {"bos_token_id": pool.eos_id, "eos_token_id": pool.eos_id, "pad_token_id": pool.pad_id}
    config = AutoConfig.for_model(name, vocab_size=pool.vocab_size, use_cache=False, **ids, **given)
    _refuse_uneven_heads(config)
    return config


def _refuse_unknown(architecture: str, given: Mapping[str, Any]) -> None:
    """Refuse a field that transformers would keep and never read."""
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[architecture]()
    for name, value in given.items():
        if not hasattr(default, name):
            known = [key for key in default.to_dict() if not key.startswith("_")]
            raise ConfigError(
                f"the {architecture} configuration has no {name}{closest(name, known)}",
                got=f"model.config.{name}={value}",
                allowed=f"the fields of {type(default).__name__}",
                do=f"correct it, or drop model.config.{name}",
            )


def _refuse_uneven_heads(config: Any) -> None:
    """Shapes that transformers builds and that fail in the first forward pass."""
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        size = getattr(config, name, 1)
        if isinstance(size, int) and size < 1:
            raise ConfigError(f"model.config.{name} must be positive", got=size, allowed="1 or more")
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    width, head = getattr(config, "hidden_size", heads), getattr(config, "head_dim", None)
    for what, whole, part in (("hidden_size", width if head is None else heads, heads), ("heads", heads, groups)):
        if whole % part:
            raise ConfigError(
                "the attention heads do not divide evenly",
                got=f"model.config.hidden_size={width}, num_attention_heads={heads}, num_key_value_heads={groups}",
                allowed="hidden_size a multiple of num_attention_heads, and that of num_key_value_heads",
                do="change one of them, or set model.config.head_dim" if what == "hidden_size" else None,
            )


def _from_scratch(settings: Mapping[str, Any], pool: Pool) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        config = model_config(settings, pool)
        return AutoModelForCausalLM.from_config(config, attn_implementation=settings["attn_implementation"])
    except (ValueError, TypeError, ImportError, RuntimeError, StrictDataclassError) as error:
        raise ConfigError(
            f"the {settings['architecture']} model cannot be built",
            got=" ".join(str(error).split())[:600],
            do="look at model.config.* and model.attn_implementation",
        ) from error


def _pretrained(settings: Mapping[str, Any], pool: Pool) -> Any:
    path = settings["path"]
    if not path:
        raise ConfigError(
            "this model has no pretrained weights",
            got="model.pretrained=true, model.path=null",
            do="set model.path=NAME_OR_FOLDER, or model.pretrained=false",
        )
    try:
        model = _loaded(path, settings["attn_implementation"])
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


def _loaded(path: str, attn_implementation: str) -> Any:
    """The model with its weights; of its shape alone, without reading them, where tensors are made on `meta`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if torch.get_default_device().type != "meta":
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attn_implementation)
    if Path(path).is_dir() and not [*Path(path).glob("*.safetensors"), *Path(path).glob("*.bin")]:
        raise OSError(f"no weights (*.safetensors or *.bin) in {path}")
    config = AutoConfig.from_pretrained(path)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn_implementation)
