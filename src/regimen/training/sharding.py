"""Lightning strategies that spread a model over ranks: FSDP2 and DeepSpeed's ZeRO, on GPUs and, over gloo, on CPUs.

Under all of them a step has the gradient that one process would have: `training.module` scales the loss by the number
of ranks, and whatever divides by something else is switched off here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import warnings
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn

from regimen.training.attention import depth, layers
from regimen.training.capabilities import FSDP, ZERO


def strategy_of(name: str, *, accelerator: str) -> str | Strategy:
    """What Lightning's trainer takes for `trainer.strategy`: an object for the sharded ones, the name for all others.

    Papers: FSDP, arXiv 2304.11277; ZeRO, arXiv 1910.02054; its offload, arXiv 2101.06840.
    """
    if name == FSDP:
        return Fsdp()
    if name in ZERO:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        stage, offload = ZERO[name]
        return Zero(stage, offload=offload, on_cpu=on_cpu)
    return name


class Fsdp(ModelParallelStrategy):
    """Parameters, gradients and moments are spread over all ranks, and gathered layer by layer (FSDP2)."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes  # known by now, whatever `devices` said
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Make each layer a group that is gathered at once, and the rest (embedding, head) one more."""
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in layers(model, depth(model)):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)


class Zero(DeepSpeedStrategy):
    """Moments (stage 1), gradients (2) and parameters (3) are spread over all ranks.

    offload: moments, and at stage 3 parameters, are kept in the memory of the CPU.
    """

    def __init__(self, stage: int, *, offload: bool, on_cpu: bool) -> None:
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is first imported
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            pin_memory=offload and not on_cpu,
            overlap_comm=not on_cpu,
            process_group_backend="gloo" if on_cpu else None,
            logging_batch_size_per_gpu=1,  # for a throughput that nobody prints
            logging_level=logging.ERROR,
        )
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False  # torch's own fused AdamW: nothing is compiled
        self.on_cpu = on_cpu
        self.load_universal = False  # whether it goes on from a checkpoint of another number of ranks

    def setup_environment(self) -> None:
        if not self.on_cpu:
            super().setup_environment()
            return
        super(DeepSpeedStrategy, self).setup_environment()  # what its parents do, without its check for CUDA

    def setup_distributed(self) -> None:
        if not self.on_cpu:
            super().setup_distributed()
            return
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, and sums otherwise
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def model_sharded_context(self) -> Any:
        """Nothing: the model is built before, whole, so that its first weights are those of every other strategy."""
        return contextlib.nullcontext()

    def init_deepspeed(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*handles gradient clipping internally.*")
            super().init_deepspeed()

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> Any:
        import deepspeed

        assert isinstance(self.config, dict)
        if self.load_universal:
            self.config["checkpoint"] = {"load_universal": True}
        device = self.root_device.index
        engine, made, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank if device is None else device),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        # Lightning has divided the loss by the number of micro-batches; DeepSpeed would divide it a second time.
        engine.backward = functools.partial(engine.backward, scale_wrt_gas=False)
        return engine, made

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """What DeepSpeed loads of its universal format at stage 3 is put right.

        It gives all groups the settings of the first, weight decay for norms too, and all one tensor for Adam's step,
        which then grows by the number of groups in each step.
        """
        if not self.load_universal:
            return super().load_checkpoint(checkpoint_path, weights_only)
        optimizer = self.deepspeed_engine.optimizer.optimizer
        own = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
        loaded = super().load_checkpoint(checkpoint_path, weights_only)
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()
        return loaded

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        done = super().optimizer_step(*args, **kwargs)
        module: Any = self.lightning_module
        module.gradient_norm = self.deepspeed_engine.get_global_grad_norm()  # clipped by DeepSpeed, in its step
        return done
