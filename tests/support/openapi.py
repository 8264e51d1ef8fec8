"""A manifest against the models that a project generates from its API: fields, types, what is required."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object, "datetime": str}
QUANTITIES = ("limits", "requests")  # the schema says text, the API takes whole numbers too


def problems(value: Any, kind: str, modules: tuple[ModuleType, ...], at: str = "") -> list[str]:
    """What does not fit: unknown fields, other types, missing fields. kind: as the models name their types."""
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no list"]
        return [p for i, one in enumerate(value) for p in problems(one, listed[1], modules, f"{at}[{i}]")]
    if mapped := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is no mapping"]
        if at.rpartition(".")[2] in QUANTITIES:
            return [f"{at}.{key}: {one!r}" for key, one in value.items() if not isinstance(one, str | int)]
        return [p for key, one in value.items() for p in problems(one, mapped[1], modules, f"{at}.{key}")]
    if kind in PLAIN:
        fits = isinstance(value, PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
        return [] if fits else [f"{at}: {value!r} is no {kind}"]
    return _of_model(value, next(getattr(m, kind) for m in modules if hasattr(m, kind)), modules, at)


def _of_model(value: Any, model: Any, modules: tuple[ModuleType, ...], at: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{at}: {value!r} is no {model.__name__}"]
    names = {key: name for name, key in model.attribute_map.items()}
    found = [f"{at}.{key}: no such field of {model.__name__}" for key in value if key not in names]
    known = {names[key]: one for key, one in value.items() if key in names}
    for name, one in known.items():
        found += problems(one, model.openapi_types[name], modules, f"{at}.{model.attribute_map[name]}")
    try:
        model(**known)  # refuses where a required field is missing
    except ValueError as error:
        found.append(f"{at}: {error}")
    return found
