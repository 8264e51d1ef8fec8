"""What stages hand over. A reference `{stage: NAME, gives: WHAT}` is plain data until the stage is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError

Find = Callable[[str, str], Any]  # (stage, what it gives) -> the value


def is_reference(value: object) -> bool:
    """Whether a setting stands for what a stage gives."""
    return isinstance(value, Mapping) and set(value) == {"stage", "gives"}


def references(tree: Any) -> list[tuple[str, str]]:
    """The (stage, what) that a tree of settings refers to."""
    if is_reference(tree):
        return [(str(tree["stage"]), str(tree["gives"]))]
    if isinstance(tree, Mapping):
        return [found for value in tree.values() for found in references(value)]
    if isinstance(tree, list):
        return [found for value in tree for found in references(value)]
    return []


def resolve(tree: Any, find: Find) -> Any:
    """The same settings with each reference replaced by its value; what the user put beside one replaces it."""
    if is_reference(tree):
        return find(str(tree["stage"]), str(tree["gives"]))
    if isinstance(tree, Mapping) and {"stage", "gives"} < set(tree):  # Hydra merges {web: 1} into {stage: x, gives: y}
        return {key: resolve(value, find) for key, value in tree.items() if key not in ("stage", "gives")}
    if isinstance(tree, Mapping):
        return {key: resolve(value, find) for key, value in tree.items()}
    if isinstance(tree, list):
        return [resolve(value, find) for value in tree]
    return tree


def given(folder: Path, what: str, *, stage: str) -> Any:
    """What the finished run or fit in `folder` gives. Raises ConfigError for what it does not give.

    Of a run: `model` its folder, `losses` its last validation losses by domain, and what its strategies give, such as
    `mixture`. Of a fit: the entries of fit.json, such as `mixture`.
    """
    if (folder / "fit.json").is_file():
        told = json.loads((folder / "fit.json").read_text())
    else:
        summary = json.loads((folder / "summary.json").read_text())
        losses = {name: score["loss"] for name, score in summary["evaluation"]["domains"].items()}
        told = {"model": str(folder.absolute()), "losses": losses, **summary.get("gives", {})}
    if what not in told:
        raise ConfigError(f"stage {stage} does not give {what}", got=f"gives: {what}", allowed=", ".join(sorted(told)))
    return told[what]


def rehearsed(domains: Sequence[str]) -> Find:
    """Values of the right form for references, to try settings out before any stage has run."""
    share = {name: 1 / len(domains) for name in domains}
    stand_ins: dict[str, Any] = {
        "mixture": share,
        "losses": dict.fromkeys(domains, 1.0),
        "graph": dict.fromkeys(domains, share),
        "model": "",
    }
    return lambda stage, what: stand_ins.get(what, {})
