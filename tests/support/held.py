"""The bytes that a rank really holds of its share of a model: weights, gradients, moments, under every strategy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_pool
from regimen.runs.memory import state_memory
from regimen.runs.run import Run
from regimen.training.callbacks.checkpoint import SaveCheckpoints
from tests.support.runs import settings_of


def size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the local parts of tensors."""
    local = [getattr(t, "_local_tensor", t) for t in tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in local)


def storage(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind the local parts of tensors, each once, padding included."""
    local = (getattr(t, "_local_tensor", t).untyped_storage() for t in tensors)
    return sum({s.data_ptr(): s.nbytes() for s in local}.values())


def moments(optimizer: Any) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]


class Weigh(pl.Callback):
    """Bytes by kind right before the last optimizer step; gradients also after each backward pass, at their most."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.gradients = 0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.gradients = max(self.gradients, size(p.grad for p in pl_module.parameters()))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        model = list(pl_module.parameters())
        if hasattr(optimizer, "bit16_groups_flat"):
            found = stages_1_and_2(optimizer, model)
        elif hasattr(optimizer, "fp16_partitioned_groups_flat"):
            found = stage_3(optimizer, model)
        else:
            kept = storage(moments(optimizer))
            found = {"parameters": storage(model), "gradients": 0, "optimizer": kept, "offloaded": 0}
        self.found = {**found, "gradients": max(found["gradients"], self.gradients)}


def stages_1_and_2(zero: Any, model: list[Tensor]) -> dict[str, int]:
    """Of DeepSpeed's optimizer; the model's weights are views of flat ones."""
    masters = zero.single_partition_of_fp32_groups
    back = getattr(zero, "param_buffer_of_bit16_for_cpu_offload_groups", [])
    return {
        "parameters": storage([*zero.bit16_groups_flat, *(p for p in model if not p.requires_grad)]),
        "gradients": size(g for group in zero.averaged_gradients.values() for g in group or ()),
        "optimizer": storage([*masters, *moments(zero.optimizer)]),
        "offloaded": size(m.grad for m in masters) + storage(back),
    }


def stage_3(zero: Any, model: Any) -> dict[str, int]:
    """Of DeepSpeed's optimizer; the model's parameters are shells around parts."""
    masters = zero.fp32_partitioned_groups_flat
    parts = [p.ds_tensor for p in model]
    assert storage([*parts, *masters]) == storage(parts) + storage(masters), "two copies"
    return {
        "parameters": storage(parts),
        "gradients": size([zero.grad_partitions_flat_buffer]),
        "optimizer": storage([*masters, *moments(zero.optimizer)]),
        "offloaded": size(m.grad for m in masters),
    }


def measure(corpus: str, home: str, rank: int, strategies: str, *overrides: str) -> None:
    """Train three steps under each strategy on both ranks; what was held and what was foretold go to files of rank 0.

    strategies: with the precision after a colon, separated by commas.
    """
    for case in strategies.split(","):
        strategy, precision = case.split(":")
        given = (f"trainer={strategy}", f"trainer.precision={precision}", "trainer.accelerator=cpu", *overrides)
        settings = settings_of(Path(corpus), Path(home), *given, "budget.steps=3", "trainer.micro_batch_size=2")
        folder = Path(home) / case
        run = Run(settings, folder, Attempt("begin", None, "held"), make_pool(settings, progress=False), None, rank, [])
        told = state_memory(run.module.model, strategy=strategy, world=2, precision=precision, moments=2, on_cpu=True)
        weigh = Weigh()
        run.trainer.callbacks[:] = [*(c for c in run.trainer.callbacks if not isinstance(c, SaveCheckpoints)), weigh]
        folder.mkdir(exist_ok=True)
        run.trainer.fit(run.module, run.context.loader)
        torch.distributed.barrier()
        if rank == 0:
            (folder / "held.json").write_text(json.dumps({"held": weigh.found, "told": told._asdict()}))
