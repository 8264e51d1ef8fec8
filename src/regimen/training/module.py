"""The Lightning module around any causal language model: per-example losses, weighted, summed over the global batch.

Letters: b rows of a micro-batch, B of the global batch, L target positions, V vocabulary, W ranks, A micro-batches.
The objective of a step is sum_i w_i l_i / N over the global batch with N known before the step, so each micro-batch
returns W * A * (w * l).sum() / N: Lightning divides by A and the data-parallel strategies average over W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.training.cost import forward_flops, training_flops
from regimen.training.cross_entropy import token_losses
from regimen.training.loader import Batch
from regimen.training.parameters import whole

Weigher = Callable[[Tensor, Batch], Tensor]  # (b, L) token losses, micro-batch -> (b,) weights, or (b, L) of tokens


@dataclass(frozen=True, kw_only=True)
class Objective:
    """How token losses become the loss of a step.

    kind: `causal_lm` on packed text, `sft` on rows of one example, of which the answers are learnt.
    reduction: `token_mean` divides the summed loss of all target tokens of the global batch by their number;
        `sample_mean` averages each example's mean loss. They agree where all rows have the same length.
    chunk: tokens whose logits are upcast to float32 at a time.
    """

    kind: Literal["causal_lm", "sft"] = "causal_lm"
    reduction: Literal["token_mean", "sample_mean"] = "token_mean"
    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.reduction not in ("token_mean", "sample_mean"):
            raise ConfigError(
                "unknown reduction", got=f"objective.reduction={self.reduction}", allowed="token_mean, sample_mean"
            )
        if self.chunk < 1:
            raise ConfigError("objective.chunk counts tokens", got=self.chunk, allowed="1 or more")

    def terms(self, sums: Tensor, tokens: Tensor) -> Tensor:
        """(b,) loss terms l_i, of summed losses (b,) and target tokens (b,)."""
        return sums if self.reduction == "token_mean" else sums / tokens.clamp(min=1)

    def normalizer(self, batch: Batch) -> int:
        """N: target tokens or rows of the global batch."""
        return max(batch.global_tokens if self.reduction == "token_mean" else batch.global_rows, 1)


class LanguageModule(pl.LightningModule):
    """Trains `model`. A weighting callback sets `weigher`; without it every example counts once.

    A step's output has, per row (b,): `sums` of its token losses, `weights` and `squares`, the mean over its target
    tokens of their weight and of its square, and `weighed`, the sum of its token losses times their weights.

    make_optimizer: from named parameters to (optimizer, learning-rate scheduler stepped every optimizer step).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        make_optimizer: Callable[[nn.Module], tuple[torch.optim.Optimizer, Any]],
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.make_optimizer = make_optimizer
        self.weigher: Weigher | None = None
        self.weighs_tokens = False
        self.gradient_norm: Tensor | None = None
        self._flops: dict[int, float] = {}
        self._training_flops: dict[int, float] = {}

    def forward_flops(self, context: int) -> float:
        """Model FLOPs of a forward pass over one token of a row of `context` tokens."""
        if context not in self._flops:
            self._flops[context] = forward_flops(self.model, context)
        return self._flops[context]

    def training_flops(self, context: int) -> float:
        """Model FLOPs of a forward and a backward pass over one token of a row of `context` tokens."""
        if context not in self._training_flops:
            self._training_flops[context] = training_flops(self.model, context)
        return self._training_flops[context]

    def token_losses(self, batch: Batch) -> Tensor:
        """(b, L) float32 token losses; 0 where nothing is predicted."""
        logits = self.model(input_ids=batch.inputs, position_ids=batch.positions, use_cache=False).logits
        return token_losses(logits, batch.targets, chunk=self.objective.chunk)  # (b, L, V) -> (b, L)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        losses = self.token_losses(batch)  # (b, L)
        sums = losses.sum(1)  # (b,)
        weights = torch.ones_like(sums)
        if self.weigher is not None:
            weights = self.weigher(losses.detach(), batch).to(sums)  # (b,) or (b, L)
        if weights.dim() == 1:
            terms = (weights * self.objective.terms(sums, batch.tokens)).sum()
            moments = {"weights": weights, "squares": weights.square(), "weighed": weights * sums.detach()}
        else:
            weighed = (weights * losses).sum(1)  # (b,)
            terms = self.objective.terms(weighed, batch.tokens).sum()
            predicted = (batch.targets >= 0) / batch.tokens.clamp(min=1)[:, None]  # (b, L) of sum 1
            means = {"weights": (weights * predicted).sum(1), "squares": (weights.square() * predicted).sum(1)}
            moments = {**means, "weighed": weighed.detach()}
        scale = self.trainer.world_size * self.trainer.accumulate_grad_batches / self.objective.normalizer(batch)
        return {"loss": terms * scale, "sums": sums.detach(), **moments}

    def predict_step(self, batch: Any) -> Any:
        """The batch itself: `regimen score` measures when a prediction starts, with the model in its place."""
        return batch

    def configure_model(self) -> None:
        """Let the strategy spread the model over the ranks, if it does so before there is an optimizer."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self.model)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = self.make_optimizer(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and note the norm of the gradient of all ranks before. DeepSpeed does both in its own step."""
        if self.trainer.strategy.handles_gradient_accumulation:
            return
        limit = float("inf") if gradient_clip_val is None else float(gradient_clip_val)
        parameters = [p for p in self.parameters() if p.grad is not None]
        self.gradient_norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, self.gradient_norm)
