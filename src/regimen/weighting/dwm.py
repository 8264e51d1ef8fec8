"""DWM: a weighting model learns, stage by stage, which rows of a batch help a target, and weighs them so.

Paper: Data Weighting Model, arXiv 2507.16178. The weights of a batch are softmax(s / tau), s the scores of the model
phi. A lesson is a virtual step with these weights on rows that training does not consume; by the chain rule through it
phi goes down the loss of a target set after the step. Then phi is frozen for a stage, and the language model trains.
Differs from the paper, which has no public code: the network, its input and its optimizer are ours; the first stage is
uniform; virtual steps are plain gradient descent with a rate of their own, whereas differentiating through a cold Adam
gives no signal, for its update is the sign of the gradient; they are discarded, or kept with `update_lm`, for the paper
trains both models in turns: lessons are then training beside the budget, charged as measuring; weights have mean 1, not
sum 1; the target is `dataset.target`, of which a part is held out. The work of phi itself is not charged.
Weights are relative to the batch: a phi that was learnt on lessons of n rows is used on global batches of any size.
A small virtual step is nearly linear in the weights, so that its best weights are those of one row: after many lessons
few rows may take all. `entropy`, `floor`, `tau` or a longer step (`by.lr`) keep the others in.
Letters: n rows, K domains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regimen.core.checks import check_counts, check_one_of, check_positive
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.learning import LearnedWeighter
from regimen.core.lookahead import Looked
from regimen.core.observation import WeighedBatch
from regimen.core.settings import PENDING
from regimen.core.signal import Signal
from regimen.signals.embedding import Embedding
from regimen.signals.row_tokens import RowTokens
from regimen.weighting.bilevel import entropy_gradient, score_gradient, weight_gradient
from regimen.weighting.descent import Moments, adam, clipped, no_moments
from regimen.weighting.in_run_values import step_shares
from regimen.weighting.row_features import features
from regimen.weighting.transfer import Form, load, packed
from regimen.weighting.weighting_model import Shape, new_parameters, scores_of

INPUTS = ("features", "pooled_hidden", "encoder")


class DwmState(NamedTuple):
    """phi: the weighting model's parameters, empty before its first lesson. first, second, steps: Adam's. frozen: phi
    comes from another run. target_loss: after the virtual step of the last lesson.
    """

    phi: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    steps: int
    frozen: bool
    target_loss: float


@dataclass(frozen=True, kw_only=True)
class Dwm(LearnedWeighter):
    """Weights n softmax(s / tau) over the global batch, mixed with uniform ones by `floor`.

    input: what phi reads of a row: `features` (loss, length, novelty, domain), `pooled_hidden`, the language model's
        last hidden state, at a forward pass per row, or `encoder`, its tokens, by two layers of phi's own.
    stages: of equal length; before each but the first come `meta_steps` lessons, a number, or below 1 a part of the
        stage's steps; those that fall into a warm-up are left out. rows: of a lesson.
    update_lm: whether the language model keeps the steps of the lessons.
    meta_lr, clip: of AdamW on phi, without weight decay; 0 leaves it as it is.
    tau: temperature. floor: part of the weights that is uniform. entropy: bonus on the entropy of the weights.
    width, layers, heads, seed: of phi. length: tokens of a row that it reads. buckets: embeddings of `encoder`.
    weighter_from: the folder of a finished run whose phi is used, frozen, from the first step on.
    """

    input: Literal["features", "pooled_hidden", "encoder"] = "features"
    stages: int = 5
    meta_steps: float = 200
    update_lm: bool = False
    rows: int = 16
    target_rows: int | None = 8
    meta_lr: float = 1e-4
    clip: float | None = 1.0
    tau: float = 1.0
    floor: float = 0.0
    entropy: float = 0.0
    width: int = 128
    layers: int = 2
    heads: int = 4
    seed: int = 0
    length: int = 512
    buckets: int = 8192
    weighter_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("input, which the weighting model reads", self.input, INPUTS)
        check_counts(self, "stages", "rows", "width", "layers", "heads", "length", "buckets")
        if self.width % self.heads:
            raise ConfigError("width does not divide by heads", got=f"width={self.width}, heads={self.heads}")
        check_positive(self, "tau", "meta_steps", *([] if self.clip is None else ["clip"]))
        if not (0 <= self.floor <= 1 and 0 <= self.meta_lr < math.inf and 0 <= self.entropy < math.inf):
            got = f"floor={self.floor}, meta_lr={self.meta_lr}, entropy={self.entropy}"
            raise ConfigError("out of range", got=got, allowed="floor from 0 to 1, the others 0 or more")

    @property
    def lesson_rows(self) -> int | None:
        return self.rows

    @property
    def keeps(self) -> bool:
        return self.update_lm

    def needs(self) -> tuple[Signal, ...]:
        if self.input == "pooled_hidden":
            return (Embedding(layer=-1, pooling="position_weighted", normalise=False),)
        return (RowTokens(length=self.length),)

    def init(self, index: PoolIndex) -> DwmState:
        """Raises ConfigError where the run of `weighter_from` has no weighting model, or one for other domains."""
        source = self.weighter_from
        if source in (None, "", PENDING):
            return DwmState({}, {}, {}, 0, False, math.nan)
        form, phi = load(str(source))
        mine = Form(self.input, self._shape(form.shape.inputs), self._domains(index), self.length, form.sizes)
        for name in ("input", "domains", "shape", "length"):
            if getattr(form, name) != getattr(mine, name):
                raise ConfigError(
                    f"the weighting model of {source} was learnt with another {name}",
                    got=getattr(mine, name),
                    allowed=getattr(form, name),
                    do="set strategies.dwm.* as in that run, on a pool of the same domains, or input=encoder",
                )
        return DwmState(phi, {}, {}, 0, True, math.nan)

    def boundaries(self, total_steps: int) -> list[int]:
        """Steps after which a stage begins, but for the first."""
        found = {s * total_steps // self.stages for s in range(1, self.stages)}
        return sorted(found - {0})

    def lessons(self, step: int, total_steps: int) -> int:
        if self.weighter_from is not None or step not in self.boundaries(total_steps):
            return 0
        if self.meta_steps >= 1:
            return int(self.meta_steps)
        return max(round(self.meta_steps * total_steps / self.stages), 1)

    def lessons_in(self, total_steps: int) -> int:
        first = self.first_step(total_steps)
        return sum(self.lessons(step, total_steps) for step in self.boundaries(total_steps) if step >= first)

    def weighs(self, step: int, total_steps: int) -> bool:
        return self.weighter_from is not None or any(step >= first for first in self.boundaries(total_steps)[:1])

    def aims(self) -> bool:
        return self.weighter_from is None

    def shares(self, state: DwmState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        return self._weights(state, losses, batch).double() * step_shares(batch.tokens, self.reduction)

    def weigh(self, state: DwmState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """Weights like `losses` (n,), mean 1 over rows with target tokens; 1 before the first lesson."""
        return self._weights(state, losses, batch).to(losses.dtype)

    def learn(self, state: DwmState, batch: WeighedBatch, looked: Looked) -> DwmState:
        """The state after one step of AdamW on phi."""
        phi = state.phi or self._new(looked.losses, batch)
        moments = Moments(state.first, state.second, state.steps) if state.first else no_moments(phi)
        leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
        counted = batch.tokens > 0  # (n,)
        with torch.enable_grad():
            scores = self._scores(leaves, looked.losses, batch)[counted]
            shares = (scores.detach().double() / self.tau).softmax(0)
            slope = self._slope(shares, batch, looked, counted)
            given = score_gradient(shares, slope, tau=self.tau).to(scores.dtype)
            found = torch.autograd.grad(scores, list(leaves.values()), given, allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if g is None else g
            for (name, value), g in zip(phi.items(), found, strict=True)
        }
        phi, moments = adam(phi, clipped(gradients, self.clip), moments, lr=self.meta_lr)
        return DwmState(phi, *moments, False, looked.target_loss)

    def shows(self, state: DwmState, index: PoolIndex) -> dict[str, Any]:
        return {"lessons": state.steps, "frozen": state.frozen}

    def gives(self, state: DwmState, index: PoolIndex) -> dict[str, Any]:
        """`phi` (P,) float32 and `phi_form`, what it is, for `weighter_from`; nothing before the first lesson."""
        if not state.phi:
            return {}
        sizes = {name: list(value.shape) for name, value in state.phi.items()}
        inputs = self.length
        if self.input != "encoder":
            inputs = sizes["read.weight"][1]
        form = Form(self.input, self._shape(inputs), self._domains(index), self.length, sizes)
        return {"phi": packed(state.phi), "phi_form": form.told()}

    # ---- parts ------------------------------------------------------------------------------------------------

    def _weights(self, state: DwmState, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """(n,) float64, mean 1 over rows with target tokens, exactly 1 where all scores are equal."""
        counted = batch.tokens > 0
        weights = counted.double()
        if state.phi and bool(counted.any()):
            with torch.no_grad():
                scores = self._scores(state.phi, losses, batch)[counted].double()
            raised = ((scores - scores.max()) / self.tau).exp()
            weights[counted] = (1 - self.floor) * (raised / raised.mean()) + self.floor
        return weights if state.phi else torch.ones_like(weights)

    def _slope(self, shares: Tensor, batch: WeighedBatch, looked: Looked, counted: Tensor) -> Tensor:
        """dJ/d softmax (n,) of the rows that are counted: of the target's loss, less the bonus on the entropy."""
        rows = int(counted.sum())
        coefficients = rows * step_shares(batch.tokens, self.reduction)[counted]
        slope = weight_gradient(looked.products[counted], coefficients, lr=self.by.lr)
        mixed = (1 - self.floor) * shares + self.floor / rows
        return (1 - self.floor) * (slope - self.entropy * entropy_gradient(mixed))

    def _scores(self, phi: dict[str, Tensor], losses: Tensor, batch: WeighedBatch) -> Tensor:
        rows = self._rows(losses, batch)
        return scores_of(phi, self._shape(rows.shape[1]), rows, batch.tokens > 0)

    def _rows(self, losses: Tensor, batch: WeighedBatch) -> Tensor:
        """What phi reads of rows: (n, F) float32, or (n, T) int64."""
        values = batch.values[self.needs()[0]]
        if self.input == "features":
            return features(losses.cpu(), batch.tokens, batch.domain, values, domains=len(batch.index.domains))
        if self.input == "encoder":
            return values
        hidden = values.float()  # what all rows share goes first: it is most of a hidden state, and tells no row apart
        return (hidden - hidden.mean(0)) / (hidden.std(0, correction=0) + 1e-6)

    def _new(self, losses: Tensor, batch: WeighedBatch) -> dict[str, Tensor]:
        return new_parameters(self._shape(self._rows(losses, batch).shape[1]), seed=self.seed)

    def _shape(self, inputs: int) -> Shape:
        buckets = self.buckets if self.input == "encoder" else 0
        return Shape(inputs, self.width, self.layers, self.heads, buckets, self.input == "pooled_hidden")

    def _domains(self, index: PoolIndex) -> tuple[str, ...]:
        return index.domains if self.input == "features" else ()
