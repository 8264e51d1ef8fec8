"""A learned weighting model, handed from the run that learnt it to another run.

A run gives its parameters as one vector, and the form that says what they are. Letters: P numbers of all parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.weighting.weighting_model import Shape


class Form(NamedTuple):
    """What parameters are. input: of the weighting model; domains: that its input tells apart, in order."""

    input: str
    shape: Shape
    domains: tuple[str, ...]
    length: int
    sizes: dict[str, list[int]]

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        return {**self._asdict(), "shape": self.shape._asdict(), "domains": list(self.domains)}


def packed(parameters: Mapping[str, Tensor]) -> Tensor:
    """(P,) float32."""
    return torch.cat([value.flatten().float() for value in parameters.values()])


def unpacked(flat: Tensor, sizes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Parameters by name. Raises ConfigError where `flat` (P,) has another number of them."""
    counts = [int(np.prod(size)) for size in sizes.values()]
    if sum(counts) != len(flat):
        raise ConfigError(
            "a weighting model has other parameters than its run says", got=len(flat), allowed=sum(counts)
        )
    parts = torch.split(flat, counts)
    return {name: part.view(size).clone() for (name, size), part in zip(sizes.items(), parts, strict=True)}


def load(source: str) -> tuple[Form, dict[str, Tensor]]:
    """The weighting model of a finished run: its folder, or the file gives/phi.npy in it.

    Raises ConfigError where there is none.
    """
    path = Path(source).expanduser()
    folder = path.parent.parent if path.suffix == ".npy" else path
    summary = folder / "summary.json"
    if not summary.is_file():
        raise ConfigError(
            "not a run folder", got=source, do="name the folder of a finished run of method=dwm: ls outputs"
        )
    told = json.loads(summary.read_text()).get("gives") or {}
    if "phi_form" not in told or "phi" not in told:
        raise ConfigError(
            "this run has learnt no weighting model",
            got=source,
            allowed="a finished run of method=dwm that made a lesson",
            do="train one, with more budget.steps than strategies.dwm.stages",
        )
    form = told["phi_form"]
    given = Path(told["phi"])
    flat = torch.from_numpy(np.load(given if given.is_file() else folder / "gives" / "phi.npy"))
    shape = Shape(**form["shape"])
    return Form(form["input"], shape, tuple(form["domains"]), form["length"], form["sizes"]), unpacked(
        flat, form["sizes"]
    )
