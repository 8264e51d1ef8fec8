"""Settings that cannot work are refused here, in well under a second: nothing heavy is imported, no model is built.

Each closed group lists all its settings, so that one added with `+` and misspelt is refused and not dropped.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from regimen.core.errors import ConfigError, closest
from regimen.runs import stages
from regimen.runs.budget import UNITS, chosen_unit
from regimen.training.capabilities import PRECISIONS, SHARDED, ZERO


class Rule(NamedTuple):
    """What a setting may be, in words and as a test."""

    allowed: str
    holds: Callable[[Any], bool]


def _whole(least: int, most: float = math.inf) -> Rule:
    words = f"a whole number of {least} or more" if most == math.inf else f"a whole number from {least} to {most:.0f}"
    return Rule(words, lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most)


def _number(least: float, most: float = math.inf) -> Rule:
    words = f"a number of {least:g} or more" if most == math.inf else f"a number from {least:g} to {most:g}"
    return Rule(words, lambda v: _is_number(v) and least <= v <= most and v != math.inf)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(*known: str) -> Rule:
    return Rule(", ".join(known), lambda v: v in known)


def _words(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, str) and v != "" for v in values)


def _or_null(rule: Rule, meaning: str) -> Rule:
    return Rule(f"{rule.allowed}, or null ({meaning})", lambda v: v is None or rule.holds(v))


_POSITIVE = Rule("a number above 0", lambda v: _is_number(v) and 0 < v < math.inf)
_SWITCH = Rule("true or false", lambda v: isinstance(v, bool))
_ANY = Rule("", lambda v: True)
_FRACTIONS = Rule(
    "a list of parts of the run, each from 0 to 1, e.g. [0, 0.5, 1]",
    lambda v: isinstance(v, list) and all(_is_number(f) and 0 <= f <= 1 for f in v),
)

GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "trainer": {
        **dict.fromkeys(("strategy", "precision"), _ANY),
        "accelerator": _one_of("cpu", "gpu", "cuda", "mps", "auto"),
        "devices": Rule(
            "how many, a list of numbers, or auto",
            lambda v: v in ("auto", -1) or _whole(1).holds(v) or (isinstance(v, list) and len(v) > 0),
        ),
        "num_nodes": _whole(1),
        "global_batch_size": _whole(1),
        "micro_batch_size": _or_null(_whole(1), "no accumulation"),
        "sweep_batch_size": _whole(1),
        "gradient_clip_val": _or_null(_POSITIVE, "no clipping"),
        "deterministic": Rule("true, false or warn", lambda v: isinstance(v, bool) or v == "warn"),
        "threads": _or_null(_whole(1), "as they are"),
        "save_every_steps": _or_null(_whole(1), "never"),
        "save_every_minutes": _or_null(_POSITIVE, "never"),
        "keep_checkpoints": _or_null(_whole(1), "all"),
        "save_at": Rule(
            "a list of fractions of the run, e.g. [0.5, 1]",
            lambda v: isinstance(v, list) and all(_POSITIVE.holds(f) and f <= 1 for f in v),
        ),
        "group_by_length": _SWITCH,
        "progress": _one_of("auto", "bar", "lines", "none"),
        "log_every": _whole(1),
    },
    "model": {
        **dict.fromkeys(("path", "attn_implementation", "architecture", "config"), _ANY),
        **dict.fromkeys(("pretrained", "gradient_checkpointing", "compile"), _SWITCH),
        "lora": _or_null(Rule("a mapping", lambda v: isinstance(v, Mapping)), "no adapters"),
    },
    "model.lora": {
        "rank": _or_null(_whole(1), "no adapters: the whole model is trained"),
        "alpha": _POSITIVE,
        "dropout": Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1),
        "targets": Rule(
            "all-linear, a regular expression, or a list of names of modules, e.g. [q_proj, v_proj]",
            lambda v: (isinstance(v, str) and v != "") or (isinstance(v, list) and _words(v)),
        ),
    },
    "budget": {**dict.fromkeys(UNITS, _ANY), "fallback_steps": _whole(1)},
    "evaluation": {"at": _FRACTIONS, "decile_rows": _whole(0)},
    "objective": {
        "kind": _one_of("causal_lm", "sft"),
        "reduction": _one_of("token_mean", "sample_mean"),
        "chunk": _whole(1),
    },
    "paths": dict.fromkeys(("outputs", "pools", "store"), Rule("a folder", lambda v: isinstance(v, str) and v != "")),
    "proxy": {
        "model": _or_null(Rule("a model of conf/model", lambda v: isinstance(v, str)), "the run's own"),
        **dict.fromkeys(UNITS, _or_null(_POSITIVE, "the run's own budget")),
        "runs": _whole(1),
    },
    "shard": {"index": _whole(0), "count": _whole(1)},
    "forecast": {
        **dict.fromkeys(("rows", "documents"), _or_null(_number(1), "what the source holds")),
        "document_tokens": _or_null(_POSITIVE, "the mean of the sample"),
        "sample_mb": _POSITIVE,
    },
    "logger": dict.fromkeys(("wandb", "tensorboard"), Rule("a mapping", lambda v: isinstance(v, Mapping))),
    "logger.wandb": {
        "project": _ANY,
        "entity": _ANY,
        "mode": _or_null(_one_of("online", "offline"), "WANDB_MODE, else online where a key is"),
        "tags": Rule("a list of words", lambda v: isinstance(v, list)),
    },
    "optimizer.schedule": {
        "kind": _one_of("cosine", "linear", "wsd", "constant"),
        "warmup": _number(0),
        "final": _number(0, 1),
        "decay": Rule("a number above 0, up to 1", lambda v: _POSITIVE.holds(v) and v <= 1),
    },
    "optimizer.average": {
        "kind": _one_of("none", "mean", "ema"),
        "start": _number(0),
        "decay": Rule("a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1),
    },
}
"""Groups whose settings are all known."""

SINGLE: Mapping[str, Rule] = {
    "seed": _whole(0, 2**32 - 1),
    "accept_other_version": _SWITCH,
    "on_bad_record": _one_of("fail", "skip"),
    "stages": Rule("a mapping of stages", lambda v: isinstance(v, Mapping)),
    "rounds": _whole(1),
    "only_stages": _SWITCH,
    "dry_run": _SWITCH,
    "dataset.max_epochs_per_domain": _or_null(_whole(1), "no cap"),
    "optimizer.lr": _POSITIVE,
}
"""Settings with a rule in groups that are open."""


def settings(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for an unknown setting of a closed group, or a value out of range or of the wrong type."""
    for group, rules in GROUPS.items():
        values = _at(given, group)
        if group in ("logger.wandb", "model.lora", "optimizer.average") and values is None:
            continue  # it is turned off
        if not isinstance(values, Mapping):
            raise ConfigError(f"{group} has no settings", got=f"{group}={values}", allowed=", ".join(rules))
        for name, value in values.items():
            _refuse_unknown(group, name, value, rules)
            _refuse_value(f"{group}.{name}", value, rules[name])
    for name, rule in SINGLE.items():
        if (value := _at(given, name, missing=_ANY)) is not _ANY:
            _refuse_value(name, value, rule)
    for group in ("optimizer.schedule", "optimizer.average"):
        told = _at(given, group)
        missing = [] if told is None else [name for name in GROUPS[group] if name not in told]
        if missing:
            raise ConfigError(f"{group} lacks {', '.join(missing)}", do="see conf/optimizer/adamw.yaml")
    chosen_unit(given["budget"])
    stages.check(given["stages"])
    _refuse_ragged_batch(given["trainer"])
    _refuse_strategy(given)


def rows(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where the objective is not that of the dataset's rows. Preparing data needs no objective."""
    objective, rows_of = given["objective"].get("kind", "causal_lm"), given["dataset"].get("format", "text")
    if objective == "sft" and rows_of == "text":
        raise ConfigError(
            "objective=sft learns answers, and packed text has none",
            got=f"objective.kind=sft dataset.format={rows_of}",
            do="choose a dataset of examples, e.g. dataset=local_sft or dataset=sft_files dataset.path=FILE, "
            "or objective=causal_lm",
        )
    if objective == "causal_lm" and rows_of == "sft":
        raise ConfigError(
            "the rows of this dataset are examples, whose prompts are left out of the loss",
            got=f"objective.kind=causal_lm dataset.format={rows_of}",
            do="add objective=sft, or choose a dataset of text, e.g. dataset=local",
        )


def _refuse_ragged_batch(trainer: Mapping[str, Any]) -> None:
    """The global batch must divide; with devices=auto only the trainer knows over how many ranks."""
    devices, rows = trainer["devices"], trainer["global_batch_size"]
    if not isinstance(devices, int) or devices < 1:
        return
    world = devices * trainer["num_nodes"]
    micro = trainer["micro_batch_size"] or max(rows // world, 1)
    if rows % (world * micro):
        part = world * micro
        raise ConfigError(
            "the global batch does not divide over the ranks and micro-batches",
            got=f"trainer.global_batch_size={rows}, ranks {world}, trainer.micro_batch_size={micro}",
            allowed=f"a multiple of {part}",
            do=f"set trainer.global_batch_size={-(-rows // part) * part}, or another trainer.micro_batch_size",
        )


def _refuse_strategy(given: Mapping[str, Any]) -> None:
    """What cannot be spread over ranks as asked."""
    trainer = given["trainer"]
    strategy, precision = trainer["strategy"], str(trainer["precision"])
    if strategy not in SHARDED:
        if isinstance(strategy, str) and re.match("deepspeed|fsdp|model_parallel|xla", strategy):
            raise ConfigError(
                f"no such strategy{closest(strategy, SHARDED)}",
                got=f"trainer.strategy={strategy}",
                allowed=", ".join(("auto", "ddp", *SHARDED)),
                do="choose a preset, e.g. trainer=fsdp or trainer=deepspeed_zero2",
            )
        return
    if strategy in ZERO and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "this strategy needs the package deepspeed",
            got=f"trainer.strategy={strategy}",
            do="pip install 'regimen[deepspeed]', or type trainer=fsdp, which shards as ZeRO-3 does and needs nothing",
        )
    if precision not in PRECISIONS:
        raise ConfigError(
            "precision of a model that is spread over ranks",
            got=f"trainer.precision={precision} trainer.strategy={strategy}",
            allowed=", ".join(PRECISIONS),
            do="type trainer.precision=bf16-mixed, or trainer=ddp",
        )
    if given["model"].get("compile"):
        raise ConfigError(
            "a model that is spread over ranks is not compiled",
            got=f"model.compile=true trainer.strategy={strategy}",
            do="drop model.compile=true, or type trainer=ddp",
        )
    if _at(given, "optimizer.average.kind", "none") != "none":
        raise ConfigError(
            "weights that are spread over ranks are not averaged",
            got=f"optimizer.average.kind={given['optimizer']['average']['kind']} trainer.strategy={strategy}",
            allowed="one device, or trainer=ddp",
            do="set optimizer.average.kind=none, e.g. with optimizer.schedule.kind=wsd, or type trainer=ddp",
        )
    if trainer["accelerator"] == "mps":
        raise ConfigError(
            "a model is spread over NVIDIA GPUs or processes on CPUs",
            got=f"trainer.accelerator=mps trainer.strategy={strategy}",
            do="type trainer.accelerator=cpu, or trainer=cpu",
        )


def _at(given: Mapping[str, Any], dotted: str, missing: Any = None) -> Any:
    value: Any = given
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return missing
        value = value[key]
    return value


def _refuse_unknown(group: str, name: str, value: object, known: Mapping[str, Rule]) -> None:
    if name not in known:
        raise ConfigError(
            f"unknown setting {group}.{name}{closest(name, known)}",
            got=f"{group}.{name}={value}",
            allowed=", ".join(known),
            do=f"correct it, or drop +{group}.{name}",
        )


def _refuse_value(name: str, value: object, rule: Rule) -> None:
    if not rule.holds(value):
        raise ConfigError(
            f"{name} is out of range or of the wrong type",
            got=f"{name}={'null' if value is None else value}",
            allowed=rule.allowed,
            do=f"type {name}=... with such a value, or drop the override",
        )
