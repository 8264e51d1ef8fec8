"""`summary.json`: what a run was, what it reached and what it cost."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from regimen import __version__
from regimen.data.pool import Pool
from regimen.runs.identity import config_hash, methods, run_name
from regimen.runs.strategies import Placed
from regimen.training.context import RunContext
from regimen.training.cost import non_embedding_parameters

FORMAT = 1
_LIBRARIES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "datasets", "hydra-core", "numpy")


def beginning(settings: Mapping[str, Any], pool: Pool, placed: list[Placed], model: nn.Module) -> dict[str, Any]:
    """What is known before the first step; status `running`."""
    choices = settings["choices"]
    return {
        "format": FORMAT,
        "name": run_name(settings),
        "status": "running",
        "reason": None,
        "method": "+".join(methods(settings)),
        "strategies": {p.name: {"kind": p.kind, "target": settings["strategies"][p.name]["_target_"]} for p in placed},
        "model": choices["model"],
        "dataset": choices["dataset"],
        "seed": settings["seed"],
        "hash": config_hash(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "non_embedding_parameters": non_embedding_parameters(model),
        "versions": versions(),
        "fingerprints": fingerprints(settings, pool),
        "machine": machine(),
    }


def ending(context: RunContext, evaluation: Mapping[str, Any], *, peak_memory_mb: float) -> dict[str, Any]:
    """What a finished run adds."""
    clock, stream = context.clock, context.loader.stream
    flops, seconds = clock.by("flops"), clock.by("seconds")
    index = context.index
    natural = dict(zip(index.domains, index.natural().tolist(), strict=True))
    decided = stream.plan.mixture
    served = (stream.counts() > 0).nonzero().flatten()
    return {
        "status": "finished",
        "steps": stream.step,
        "tokens": int(clock.charges["training"].tokens),
        "unique_tokens": int(index.tokens_of(served).sum()),
        "flops": {**flops, "total": clock.total_flops()},
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_memory_mb": peak_memory_mb,
        "evaluation": dict(evaluation),
        "mixture": {"realised": stream.realised(), "decided": decided and dict(decided), "natural": natural},
        "warnings": list(context.warnings),
    }


def fingerprints(settings: Mapping[str, Any], pool: Pool) -> dict[str, str]:
    """What a run must agree in to be the same run."""
    return {
        "pool": pool.fingerprint,
        "tokenizer": pool.tokenizer_fingerprint,
        "config": config_hash(settings),
    }


def versions() -> dict[str, str]:
    """Versions of Python, regimen and the libraries that can change a result."""
    found = {"python": platform.python_version(), "regimen": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores and the GPU."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
