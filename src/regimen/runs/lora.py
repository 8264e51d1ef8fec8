"""Low-rank adapters, from `model.lora`: they alone are trained. Imported with peft where they are asked for.

Paper: LoRA, arXiv 2106.09685. The adapters are put into the model itself, so that all else sees the same architecture.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from regimen.core.errors import ConfigError, closest

_SHOWN = 12  # names of modules in an error
_PREFIX = "base_model.model."  # what peft puts before the names of the model's weights in its wrapper


def lora_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`model.lora`, or None where it is off."""
    lora = settings.get("lora")
    return lora if lora and lora["rank"] is not None else None


def add_adapters(model: nn.Module, lora: Mapping[str, Any]) -> None:
    """Puts adapters into `model` and freezes all else. Raises ConfigError where peft is missing or cannot do it."""
    peft = _peft()
    config = _config(model, lora)
    try:
        peft.inject_adapter_in_model(config, model)
    except (ValueError, TypeError, RuntimeError, re.error) as error:
        raise _refused(model, lora, str(error)) from error


def export_adapted(
    model: nn.Module, lora: Mapping[str, Any], weights: Mapping[str, Any], to: Path, *, base: str | None
) -> None:
    """Writes the trained model to folder `to`: merged into its base, or the adapter alone where `base` is named.

    model: the base, without adapters. weights: of the adapted model, as a checkpoint has them.
    """
    config = _config(model, lora)
    config.base_model_name_or_path = base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        wrapped: Any = _peft().get_peft_model(model, config)
    wrapped.load_state_dict({_PREFIX + name: value for name, value in weights.items()})
    if base is not None:
        wrapped.peft_config["default"].inference_mode = True
        wrapped.save_pretrained(to, save_embedding_layers=False)
        return
    merged = wrapped.merge_and_unload()
    merged.config.use_cache = True
    merged.save_pretrained(to)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "adapters need the package peft",
            got=f"model.lora.rank is set, and import peft says: {error}",
            do="pip install 'regimen[lora]', or type model.lora.rank=null to train the whole model",
        ) from error
    return peft


def _config(model: nn.Module, lora: Mapping[str, Any]) -> Any:
    targets = lora["targets"]
    if targets != "all-linear":
        _refuse_unknown(model, targets)
    return _peft().LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.modules()),  # how GPT-2 keeps its weights
    )


def _refuse_unknown(model: nn.Module, targets: str | list[str]) -> None:
    """Refuse a target that is found nowhere, where peft would pass over it as long as another one is found."""
    names = [name for name, _ in model.named_modules() if name]
    for target in [targets] if isinstance(targets, str) else targets:
        if isinstance(targets, str):
            found = any(re.fullmatch(target, name) for name in names)
        else:
            found = any(name == target or name.endswith(f".{target}") for name in names)
        if not found:
            raise _refused(model, {"targets": targets}, f"no module is called {target}")


def _refused(model: nn.Module, lora: Mapping[str, Any], why: str) -> ConfigError:
    leaves = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _adaptable(m)})
    targets = lora["targets"]
    meant = closest(str(targets[0]), leaves) if isinstance(targets, list) and len(targets) == 1 else ""
    return ConfigError(
        f"adapters cannot be put there{meant}",
        got=f"model.lora.targets={targets}: {' '.join(why.split())[:200]}",
        allowed=", ".join(leaves[:_SHOWN]) + ", or all-linear",
        do="type model.lora.targets=[NAME,...] with some of these",
    )


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
