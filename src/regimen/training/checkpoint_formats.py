"""Checkpoints of every strategy as one: weights and optimizer states by the names of parameters, and all the rest.

One process and DDP write a file, FSDP2 a folder of torch's distributed checkpoint, DeepSpeed a folder of its own with a
file per rank, which its `ds_to_universal` turns into files per parameter.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regimen.core.errors import RunError

Format = Literal["file", "fsdp", "zero"]
_MODEL = "model."  # the name of the model inside the Lightning module
_META = "meta.pt"
_TAG = "checkpoint"  # the folder that Lightning has DeepSpeed write to
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")


class Saved(NamedTuple):
    """A checkpoint.

    weights: by name of the parameter or buffer, whole. states: of the optimizer, by name of the parameter and then of
    the state. rest: loops, callbacks, schedules.
    """

    weights: dict[str, Tensor]
    states: dict[str, dict[str, Any]]
    rest: dict[str, Any]


def format_of(path: Path) -> Format:
    """How a checkpoint is laid out."""
    if path.is_file():
        return "file"
    return "fsdp" if (path / _META).is_file() else "zero"


def ranks_of(path: Path) -> int:
    """How many ranks wrote a checkpoint of DeepSpeed."""
    return len([p for p in (path / _TAG).iterdir() if _RANK.search(p.name)])


def stage_of(path: Path) -> int:
    """ZeRO's stage of a checkpoint of DeepSpeed: 3, or 2 for 1 and 2, which are alike."""
    return 2 if (path / _TAG / "mp_rank_00_model_states.pt").is_file() else 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The whole weights of the model on the CPU, in float32 if DeepSpeed trained it."""
    kind = format_of(path)
    if kind == "file":
        return of_model(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    return of_model(_distributed(path, "state_dict.") if kind == "fsdp" else _zero_weights(path))


def read_rest(path: Path) -> dict[str, Any]:
    """What is neither weights nor states of the optimizer."""
    kind = format_of(path)
    if kind == "zero":
        say_which_accelerator()  # the file holds objects of DeepSpeed's
        first = "mp_rank_00_model_states.pt" if stage_of(path) == 2 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
        held: dict[str, Any] = torch.load(path / _TAG / first, map_location="cpu", weights_only=False)
        return {k: held[k] for k in held if k in _LIGHTNING or k.startswith("hparams")}
    file = path / _META if kind == "fsdp" else path
    saved = torch.load(file, map_location="cpu", weights_only=True)
    return {k: v for k, v in saved.items() if k not in ("state_dict", "optimizer_states")}


_LIGHTNING = ("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "lr_schedulers")


def read(path: Path, order: list[str]) -> Saved:
    """All of a checkpoint. order: names of the parameters in the optimizer, by which a file numbers them."""
    kind, weights, rest = format_of(path), read_weights(path), read_rest(path)
    if kind == "file":
        (optimizer,) = torch.load(path, map_location="cpu", weights_only=True)["optimizer_states"]
        states = {order[number]: state for number, state in optimizer["state"].items()}
    elif kind == "fsdp":
        states = _distributed_states(path)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".universal-", suffix=".tmp") as scratch:
            states = _universal_states(to_universal(path, Path(scratch) / path.name), weights, rest["global_step"])
    return Saved(weights, states, rest)


def names_in(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of the optimizer's parameters in its order."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def write_file(
    saved: Saved, optimizer: torch.optim.Optimizer, model: nn.Module, to: Path, *, by_name: bool = False
) -> None:
    """Write a checkpoint as one process does, for an `optimizer` of the parameters of `model` that is not used yet.

    by_name: parameters of the optimizer have their names and not their numbers, as FSDP2 wants them.
    """
    order = names_in(optimizer, model)
    key = {name: _MODEL + name if by_name else place for place, name in enumerate(order)}
    held = optimizer.state_dict()
    for group, rate in zip(held["param_groups"], saved.rest["lr_schedulers"][0]["_last_lr"], strict=True):
        group |= {"lr": rate, "params": [key[order[place]] for place in group["params"]]}
    held["state"] = {key[name]: state for name, state in saved.states.items()}
    weights = {_MODEL + name: value for name, value in saved.weights.items()}
    torch.save({**saved.rest, "state_dict": weights, "optimizer_states": [held]}, to)


def of_model(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the model alone, out of a checkpoint's."""
    return {key.removeprefix(_MODEL).replace("_orig_mod.", ""): value for key, value in state.items()}


# ---- FSDP2 -------------------------------------------------------------------------------------------------------


def _distributed(path: Path, prefix: str) -> dict[str, Any]:
    """What a distributed checkpoint holds under `prefix`, by the rest of its names, read in this process alone."""
    from torch.distributed import checkpoint

    reader = checkpoint.FileSystemReader(path)
    found: dict[str, Any] = {}
    for name, told in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(prefix):
            size, kind = getattr(told, "size", None), getattr(told, "properties", None)
            found[name] = None if size is None or kind is None else torch.empty(size, dtype=kind.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process.*")
        checkpoint.load(found, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _distributed_states(path: Path) -> dict[str, dict[str, Any]]:
    states: dict[str, dict[str, Any]] = {}
    for name, value in _distributed(path, "optimizer_0.state.").items():
        parameter, _, state = name.rpartition(".")
        states.setdefault(parameter.removeprefix(_MODEL), {})[state] = value
    return states


# ---- DeepSpeed ---------------------------------------------------------------------------------------------------


def say_which_accelerator() -> None:
    """Before deepspeed is imported, which on a machine without a GPU warns of its guess."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _zero_weights(path: Path) -> dict[str, Tensor]:
    say_which_accelerator()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    silence = io.StringIO()  # it tells of every shard
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        found = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=_TAG)
    return {name: value.detach() for name, value in found.items()}


def to_universal(path: Path, to: Path) -> Path:
    """DeepSpeed's conversion of its checkpoint at `path` to a folder `to` that any number of ranks can go on from."""
    to.mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    command += ["--input_folder", str(path / _TAG), "--output_folder", str(to / _TAG)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
    if done.returncode:
        raise RunError(
            "DeepSpeed cannot convert the checkpoint",
            got=f"{path}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}",
            do="go on with as many processes as it was saved on",
        )
    return to


def _universal_states(folder: Path, weights: Mapping[str, Tensor], step: int) -> dict[str, dict[str, Any]]:
    """By name of the parameter: its moments, in its shape, and the steps, which DeepSpeed keeps by group."""
    states: dict[str, dict[str, Any]] = {}
    for place in sorted(p for p in (folder / _TAG / "zero").iterdir() if p.is_dir()):
        name = place.name.removeprefix(_MODEL)
        for file in place.glob("*.pt"):
            if file.stem not in ("fp32", "step"):
                held = torch.load(file, map_location="cpu", weights_only=False)
                value = held["param"] if isinstance(held, dict) else held
                states.setdefault(name, {"step": torch.tensor(float(step))})[file.stem] = value.view_as(weights[name])
    return states
