"""Which run a configuration is: its readable name, its hash, its folder. Never a function of the clock.

What cannot change the result (where files go, how work is laid out on devices, what is logged) is not in the hash, so
that a run resumed on other hardware finds its folder.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regimen.core.settings import NOT_RESULT, is_under


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hex digits of everything in a resolved configuration that can change the result."""
    kept: dict[str, Any] = json.loads(json.dumps(config, default=str))
    _leave_out_what_is_off(kept)
    kept["strategies"] = by_content(kept.get("strategies", {}))
    if not kept.get("stages"):
        for name in ("rounds", "proxy"):  # they are the stages' alone
            kept.pop(name, None)
    for dotted in NOT_RESULT:
        *path, last = dotted.split(".")
        node = kept
        for key in path:
            node = node.get(key, {})
        node.pop(last, None)
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def score_hash(config: Mapping[str, Any]) -> str:
    """Ten hex digits of what can change the scores of `regimen score`."""
    return hashlib.sha256(f"{config_hash(config)} {json.dumps(config['score'], default=str)}".encode()).hexdigest()[:10]


def _leave_out_what_is_off(config: dict[str, Any]) -> None:
    """Settings that came later and do nothing: a run from before there were such settings keeps its hash."""
    if config.get("objective", {}).get("kind") == "causal_lm":
        del config["objective"]["kind"]
    if not config.get("trainer", {}).get("save_at", True):
        del config["trainer"]["save_at"]
    dataset = config.get("dataset", {})
    if dataset.get("format", "text") == "text" and not any(
        dataset.get("target", {}).get(key) for key in ("path", "from")
    ):
        dataset.pop("target", None)
    for strategy in config.get("strategies", {}).values():
        if isinstance(strategy, dict) and strategy.get("token_ratio", 0) is None:
            del strategy["token_ratio"]
        if isinstance(strategy, dict) and "descending" in strategy and strategy.get("share") == 1.0:
            del strategy["share"]
        by = strategy.get("by") if isinstance(strategy, dict) else None
        if isinstance(by, dict) and (by.get("scorer") or {"model": None})["model"] == "none":
            del by["scorer"]
        if isinstance(by, dict) and by.get("polarity") == 1:
            del by["polarity"]
    optimizer = config.get("optimizer", {})
    if (optimizer.get("average") or {"kind": "none"})["kind"] == "none":
        optimizer.pop("average", None)
    model = config.get("model", {})
    if "lora" in model and not (model["lora"] or {}).get("rank"):
        del model["lora"]


def by_content(tree: Any) -> Any:
    """The settings with finished runs and files replaced by their content: where they lie does not matter."""
    if isinstance(tree, dict):
        return {key: by_content(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [by_content(value) for value in tree]
    if isinstance(tree, str) and ("/" in tree or "." in tree):  # a word may be the name of a file by chance
        path = os.path.expanduser(tree)
        if os.path.isfile(told := os.path.join(path, "summary.json")):
            run = json.loads(Path(told).read_text())
            return f"run {run['hash']} on {run['fingerprints']['pool']}"
        if os.path.isfile(os.path.join(path, "modules.json")):  # a sentence encoder
            return f"encoder {_digest_of_folder(path)}"
        if os.path.isfile(path):
            state = os.stat(path)
            return f"file {_digest(path, state.st_size, state.st_mtime_ns)}"
    return tree


def signal_identity(signal: Any) -> Any:
    """What a signal measures, as plain data: classes and settings, with finished runs and files by their content."""
    if dataclasses.is_dataclass(signal) and not isinstance(signal, type):
        told = {field.name: signal_identity(getattr(signal, field.name)) for field in dataclasses.fields(signal)}
        return {"class": type(signal).__qualname__, **told}
    if isinstance(signal, list | tuple):
        return [signal_identity(value) for value in signal]
    return by_content(signal)


def _digest_of_folder(folder: str) -> str:
    """Of the names and contents of all files below a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    told = [f"{p.relative_to(folder)} {_digest(str(p), p.stat().st_size, p.stat().st_mtime_ns)}" for p in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    """Of a file's content; size and time of change only spare reading it again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def methods(config: Mapping[str, Any]) -> list[str]:
    """The names given to `method=`."""
    return [name for name in re.split(r"[\s,\[\]'\"]+", str(config["choices"]["method"])) if name]


def run_name(config: Mapping[str, Any]) -> str:
    """E.g. `folding+loss_weighting-nano-local-seed1`."""
    choices = config["choices"]
    parts = ["+".join(methods(config)), choices["model"], choices["dataset"], f"seed{config['seed']}"]
    return "-".join(re.sub(r"[^\w.+]", "_", str(part)) for part in parts)


def run_folder(config: Mapping[str, Any], *, sweep: str | None) -> Path:
    """Where the run lives: `run_dir`, or a name and a hash under `paths.outputs` and the multirun's folder."""
    if config["run_dir"]:
        return Path(config["run_dir"]).expanduser()
    root = Path(config["paths"]["outputs"]).expanduser()
    return root / (sweep or "") / f"{run_name(config)}-{config_hash(config)}"


def sweep_name(overrides: list[str]) -> str:
    """A folder name for a multirun: what is swept, how many values, and a hash, e.g. `method6-seed3-1f2e3d`.

    What cannot change a result is left out, so that the same grid with another logger goes on in its folder.
    """
    overrides = [o for o in overrides if not is_under(o.partition("=")[0].lstrip("+~"), NOT_RESULT)]
    swept = []
    for override in overrides:
        key, _, value = override.partition("=")
        if re.fullmatch(r"[\w./@+-]+", key) and (n := _values(value)) > 1:
            swept.append(f"{key.lstrip('+').split('.')[-1]}{n}")
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:6]
    return "-".join([*swept, digest]) if swept else f"multirun-{digest}"


def _values(text: str) -> int:
    """Values of a simple sweep `a,b,c`; commas inside brackets, braces, parentheses or quotes do not count."""
    ranged = re.fullmatch(r"range\((\d+)(?:,(\d+))?\)", text.replace(" ", ""))
    if ranged:
        first, second = ranged.groups()
        return int(second) - int(first) if second else int(first)
    depth, count, quote = 0, 1, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "[{(":
            depth += 1
        elif c in "]})":
            depth -= 1
        elif c == "," and depth == 0:
            count += 1
    return count
