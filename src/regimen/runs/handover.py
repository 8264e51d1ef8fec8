"""What stages hand over. A reference `{stage: NAME, gives: WHAT}` is plain data until the stage is finished."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError
from regimen.core.files import write_atomically
from regimen.core.settings import PENDING

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


def left(folder: Path, name: str, value: Any) -> Any:
    """What a run's summary says of something that it gives: JSON values as they are, the path of a file of an array."""
    if not hasattr(value, "numpy"):
        return value
    import numpy as np

    content = io.BytesIO()
    np.save(content, value.cpu().numpy())
    path = folder / "gives" / f"{name}.npy"
    write_atomically(path, content.getvalue())
    return str(path.absolute())


def rehearsed(domains: Sequence[str], sizes: Mapping[str, int] | None = None) -> Find:
    """Values of the right form for references, to try settings out before any stage has run.

    sizes: runs by stage; a set gives a list.
    """
    share = {name: 1 / len(domains) for name in domains}
    stand_ins: dict[str, Any] = {
        "mixture": share,
        "losses": dict.fromkeys(domains, 1.0),
        "graph": dict.fromkeys(domains, share),
        "model": "",
        **dict.fromkeys(("scores", "embeddings", "embedded"), PENDING),
    }

    def find(stage: str, what: str) -> Any:
        value, size = stand_ins.get(what, {}), (sizes or {}).get(stage, 1)
        return [value] * size if size > 1 else value

    return find
