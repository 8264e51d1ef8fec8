"""The mixing laws by name, and their settings as text. No law is imported before it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from regimen.core.errors import ConfigError, closest

LAWS = {
    "bimix": ("bimix", "BiMix"),
    "regmix_lightgbm": ("regmix_lightgbm", "RegMixLightGBM"),
    "regmix_linear": ("regmix_linear", "RegMixLinear"),
    "mixing_laws": ("mixing_laws", "MixingLaws"),
    "olmix": ("olmix", "Olmix"),
    "mixmin": ("mixmin", "MixMin"),
}
"""Module and class by name."""

OF_LAW = "law."


def make_law(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The law of a name, with settings as text or numbers. Raises ConfigError for an unknown name, setting or value."""
    if name not in LAWS:
        raise ConfigError(f"no such law{closest(name, LAWS)}", got=f"law={name}", allowed=", ".join(LAWS))
    module, cls = LAWS[name]
    law = getattr(importlib.import_module(f"regimen.mixing.laws.{module}"), cls)
    fields = {field.name: field for field in dataclasses.fields(law)}
    given = {}
    for key, value in (settings or {}).items():
        if key not in fields:
            raise ConfigError(
                f"law={name} has no setting {key!r}{closest(key, fields)}",
                got=f"{OF_LAW}{key}={value}",
                allowed=", ".join(f"{OF_LAW}{field}" for field in fields),
            )
        kind = type(fields[key].default)
        given[key] = number(f"{OF_LAW}{key}", value, kind) if kind in (int, float) else value
    return law(**given)


def name_of(law: object) -> str:
    """The name of a law's class; the class's own name for one that is not in LAWS."""
    cls = type(law).__name__
    return next((name for name, (_, known) in LAWS.items() if known == cls), cls)


def number(key: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{key} is not {what}", got=f"{key}={value}", allowed=what) from error
