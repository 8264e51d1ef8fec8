"""The settings of runs as flat text tables, and which of them differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.core.settings import NOT_RESULT, is_under

IGNORED = ("seed", "name", *NOT_RESULT)
"""Settings that say where a run lives or what it prints, not what it does; and the seed, which pairs runs."""

METHOD_OWNED = ("method", "strategies", "stages", "signal")
"""Top-level settings that are expected to differ between methods."""

ABSENT = "(not set)"


def read_settings(folder: Path) -> tuple[dict[str, str], str | None]:
    """The flat config.yaml of a run folder (or Hydra's copy of it), and a note when it cannot be read."""
    path = next((p for p in (folder / "config.yaml", folder / ".hydra" / "config.yaml") if p.is_file()), None)
    if path is None:
        return {}, None
    import yaml  # comes with omegaconf
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        return {}, f"{path.name} cannot be read ({type(error).__name__})"
    return (flatten(loaded), None) if isinstance(loaded, dict) else ({}, f"{path.name} is not a table")


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` as `{"a.b": "1"}`; lists and empty tables stay whole, as JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def differing(tables: Sequence[Mapping[str, str]], without: Iterable[str] = IGNORED) -> list[str]:
    """The settings that are not the same in all `tables`, sorted; those under the names `without` left out."""
    skipped = tuple(without)
    keys = sorted({key for table in tables for key in table})
    return [key for key in keys if not is_under(key, skipped) and len({table.get(key, ABSENT) for table in tables}) > 1]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its last name, or by more of its names where the last alone is not unique."""
    short = {}
    for key in keys:
        names = key.split(".")
        tails = (".".join(names[-n:]) for n in range(1, len(names) + 1))
        short[key] = next(t for t in tails if t == key or not any(o != key and o.endswith("." + t) for o in keys))
    return short
