"""Signals: numbers measured on examples or domains. Equal fields mean the same signal, so it is measured once.

Letters: n rows asked for, b rows of a micro-batch, L target positions, K domains, M rows of the target set.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from regimen.core.descent import AlongDescent, Descent
from regimen.core.index import PoolIndex
from regimen.core.lookahead import Lookahead, Looked, Slope
from regimen.core.measuring import Checkpoint, Example, Language, Parts, Pooling, Sketch
from regimen.core.scoring import Scorer


class Meter(Protocol):
    """What a signal may use to measure. The training side implements it; every pass is charged to the cost clock.

    All that runs a model is collective: every rank asks the same rows and gets the same values. The model is in
    evaluation mode; random states and module modes are restored afterwards, and no `.grad` is touched.
    """

    @property
    def index(self) -> PoolIndex:
        """The rows that are measured; of the target set, its domains are the subtasks."""
        ...

    @property
    def target(self) -> Meter:
        """A meter of the target set's rows, under the same model. Raises ConfigError where the pool has none."""
        ...

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Summed target-token losses (n,) float64 in nats and target tokens (n,) of rows, under the model."""
        ...

    def states(self, ids: Tensor, *, layer: int, pooling: Pooling) -> Tensor:
        """Pooled hidden states (n, width) float32 of rows after layer `layer`: 0 the embedding, -1 the last."""
        ...

    def sentences(self, ids: Tensor, encoder: str) -> Tensor:
        """Embeddings (n, width) float32 of the text of rows by a sentence encoder, a folder or a name on the hub.

        Raises ConfigError where sentence-transformers is not installed, or has no such encoder.
        """
        ...

    def sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        """Sketches (n, d) float32 of the gradient of each row's loss. Equal sketches share their random signs.

        Raises ConfigError where the model has no such parameters, adapters are untrained, or moments are missing.
        """
        ...

    def lookahead(
        self,
        ids: Tensor,
        targets: Tensor,
        ask: Lookahead,
        *,
        shares: Callable[[Tensor], Tensor] | None = None,
        keep: bool = False,
    ) -> Looked:
        """What a virtual step on rows `ids` (n,) tells of them, for the loss of rows `targets` (M,) of the target set.

        shares: from the rows' mean losses (n,) to their coefficients (n,) in the step; null makes no step.
        keep: whether the step is real, so that the model is where it ends; what was measured before is then stale.
        Raises ConfigError where the pool has no target set, or the model cannot be differentiated so.
        """
        ...

    def slope(
        self, ids: Tensor, coefficients: Tensor, targets: Tensor, *, at: Mapping[str, Tensor] | None = None
    ) -> Slope:
        """The gradient of sum_i c_i l_i + L at parameters `at`, by name; null: where the model is.

        l (n,): mean losses of rows `ids` with coefficients c (n,); L: the mean of those of rows `targets` (M,) of the
        target set. Raises ConfigError as `lookahead`.
        """
        ...

    def along(self, ids: Tensor, descent: Descent, *, norms: bool) -> AlongDescent:
        """What the gradients of rows are along a descent from the model that aims at the target set.

        The descent's own rows are drawn from all rows of this meter. norms: whether lengths are needed.
        Raises ConfigError where there is no target set, or the descent diverges.
        """
        ...

    def learnt(self, ids: Tensor, places: Tensor, scores: Tensor, scorer: Scorer) -> Tensor:
        """Scores (n,) float64 of rows by a model that learns them from scores (m,) of those at `places` (m,) in `ids`.

        Raises ConfigError for scores that cannot be learnt from, or an unknown model.
        """
        ...

    def tokens(self, ids: Tensor) -> list[Tensor]:
        """The tokens (n_i,) int64 of each row."""
        ...

    def texts(self, ids: Tensor) -> list[str]:
        """The text of each row, without special tokens."""
        ...

    def documents(self, ids: Tensor) -> Parts:
        """The documents that rows hold, by their ids."""
        ...

    def examples(self, ids: Tensor) -> list[Example]:
        """The rows with what is predicted in them: tokens, and whether each is in the loss."""
        ...

    def of(self, examples: list[Example]) -> Meter:
        """A meter of rows that are in no pool, under the same model: ids count from 0. They have no target set."""
        ...

    def under(self, model: str) -> Meter:
        """The same rows under another model: the folder of a finished run, or the path of one of its checkpoints.

        Raises ConfigError where there is none, or it reads another tokenizer's tokens.
        """
        ...

    def checkpoints(self, run: str) -> list[Checkpoint]:
        """The checkpoints that a finished run has kept, oldest first, with their weights."""
        ...

    def once(self, what: Hashable, measure: Callable[[], Tensor]) -> Tensor:
        """What `measure` gives under this model: measured once for all parts of a sweep. what: tells it from others."""
        ...

    def values(self, signal: Signal, ids: Tensor) -> Tensor:
        """Values of a signal on rows `ids` (n,): looked up where they were measured for another, else measured."""
        ...

    @property
    def language(self) -> Language:
        """Text in and out of the model: encoding, generation, next tokens, attention."""
        ...


class Surveyor(Protocol):
    """What a signal of domains may use to measure. All methods are collective: every rank calls them alike."""

    @property
    def index(self) -> PoolIndex:
        """The training rows."""
        ...

    def validation_losses(self, rows: int | None) -> tuple[Tensor, Tensor]:
        """Summed losses (K,) float64 in nats and target tokens (K,) of the first `rows` validation rows per domain."""
        ...

    def gradient_gram(self, ids: Tensor, *, parameters: str | None, clip: float | None) -> Tensor:
        """Inner products (K, K) float64 of the gradients of each domain's mean token loss over its rows in `ids`.

        Rows and columns of domains that `ids` does not hold are 0. parameters: a regular expression for the names of
        those that are differentiated, null for all. clip: largest norm of a domain's gradient.
        """
        ...

    def gradient_moments(self, ids: Tensor, *, parameters: str | None) -> Tensor:
        """(K, 3) float64: squared norm of the mean of per-row gradients, mean of their squared norms, rows."""
        ...

    def tokens(self, domain: int, limit: int) -> list[Tensor]:
        """Token rows (n_i,) int64 of a domain's training text, whole rows up to about `limit` tokens in all."""
        ...

    def texts(self, domain: int, limit: int) -> list[str]:
        """The text of about `limit` rows of a domain, spread evenly over it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A number or vector per example. Subclasses are frozen dataclasses; their fields say what is measured.

    free: the training forward already yields it for the rows of the batch.
    forwards: forward passes over an example that measuring it costs; the cost estimate uses it.
    by_row: a row's value depends on no other row that is measured with it, so that rows may be measured a part at a
        time, and what was measured before a kill is kept.
    halfway: a measurement of all rows at once keeps how far it is, so that after a kill it goes on from there.
    compact: its vectors are short enough to be held, and kept, for all rows: signals that are made of it share them.
    """

    free: ClassVar[bool] = False
    forwards: ClassVar[float] = 1.0
    by_row: ClassVar[bool] = False
    halfway: ClassVar[bool] = False
    compact: ClassVar[bool] = False

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """Values (n,) float64 of rows `ids` (n,), or vectors (n, d) in any float type.

        Collective: every rank asks the same ids.
        """
        raise NotImplementedError(type(self).__name__)

    def made_of(self) -> tuple[Signal, ...]:
        """Signals that it asks for on the same rows by `Meter.values`: compact ones are measured before it, once."""
        return ()

    def passes(self) -> float:
        """Forward passes over a row that measuring it costs, where that depends on the settings."""
        return self.forwards

    def backwards(self) -> float:
        """Backward passes among `passes`, each counted as two; of a model with adapters one is cheaper."""
        return 0.0

    def work(self, rows: int) -> float:
        """Forward passes over a row that measuring so many rows costs in all."""
        return self.passes() * rows

    def advice(self, rows: int) -> str | None:
        """What the user should know before so many rows are measured, None for nothing."""
        return None

    def new_models(self) -> tuple[str, ...]:
        """Models of conf/model, by name, that are made for it."""
        return ()

    def beside(self, target: PoolIndex) -> float:
        """Tokens that forward passes read beside the rows asked for, to measure the target set; at most, if unsure."""
        return 0.0

    def models(self) -> tuple[str | None, ...]:
        """Folders of finished runs, or checkpoints, whose models measure it; None stands for the one in training."""
        return (None,) if self.passes() else ()

    def aims(self) -> bool:
        """Whether it measures the target set: without one, a run is refused before anything is trained."""
        return False


@dataclass(frozen=True, kw_only=True)
class TokenSignal(Signal):
    """A number per row of the batch that is trained on, made of its token losses and those of a reference model.

    Weighters alone can need it. reference: the folder of the finished run whose model is the reference.
    per_token: a number per target token instead, which a weighter of unit `token` alone can need.
    """

    per_token: ClassVar[bool] = False
    reference: str | None = None

    def of_tokens(self, losses: Tensor, reference: Tensor, targets: Tensor) -> Tensor:
        """Values (b,), or (b, L) per token, of token losses (b, L) under both models; targets (b, L) bool."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, kw_only=True)
class DomainSignal(Signal):
    """Numbers per domain.

    of_text: they depend on the pool's text alone, on no model and no draw, so that they may be kept for other runs.
    """

    of_text: ClassVar[bool] = False

    def survey(self, surveyor: Surveyor, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Values (K,) or (K, ...) float64. ids (n,): the global batch, for a weighter the one about to be trained on.

        generator: seeded by (run seed, signal, step), the same on every rank.
        """
        raise NotImplementedError(type(self).__name__)

    def rows(self, *, batch: int, validation: int, domains: int) -> float:
        """Forward passes over a row that one survey costs, for a global batch of `batch` rows."""
        return 0.0
