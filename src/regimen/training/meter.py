"""The `Meter` that signals use: rows of the pool, of its target set or of no pool, under any model.

Letters: n rows asked for, b rows of a part, L positions, d values per row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from regimen.core.descent import AlongDescent, Descent
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.lookahead import Lookahead, Looked, Slope
from regimen.core.measuring import Checkpoint, Example, Language, Parts, Pooling, Sketch
from regimen.core.scoring import Scorer
from regimen.core.signal import Meter, Signal
from regimen.data.pool import Pool, RowTable
from regimen.signals.pooling import pool_states
from regimen.training.descending import rows_along
from regimen.training.elsewhere import Elsewhere
from regimen.training.examples import ExampleRows
from regimen.training.halfway import Halfway
from regimen.training.language import make_language
from regimen.training.lookahead import VirtualStep
from regimen.training.module import LanguageModule
from regimen.training.row_scorer import learnt_scores
from regimen.training.sentences import encoder_flops, sentence_embeddings
from regimen.training.sketching import Moments, Sketcher
from regimen.training.states import base_output
from regimen.training.sweep import Sweeper


class Loaded(NamedTuple):
    """A model. moments: of its optimizer, asked for when a sketch needs them; None where it has none."""

    module: LanguageModule
    moments: Callable[[], Moments | None]


class Models(Protocol):
    """Where models come from: the run in training, and finished runs."""

    def load(self, path: str | None) -> Loaded:
        """The model of a run's folder or of a checkpoint, on the device of the training; null: the one in training."""
        ...

    def new(self, name: str, *, seed: int) -> nn.Module:
        """A model of conf/model for rows of the pool, on the CPU. Raises ConfigError where there is none."""
        ...

    def checkpoints(self, run: str) -> list[Checkpoint]:
        """What a finished run has kept, oldest first."""
        ...


class RowMeter:
    """Measures rows of `table` under the model at `path`, null for the one in training.

    sweeper: how rows are swept; its module and table are replaced. What is measured on a whole target set is kept until
    `forget`, since rows are measured a part at a time and each part is compared with all of it.
    halfway: where long measurements keep how far they are; null keeps nothing.
    """

    def __init__(
        self,
        sweeper: Sweeper,
        pool: Pool,
        models: Models,
        *,
        table: RowTable | ExampleRows,
        path: str | None = None,
        halfway: Halfway | None = None,
    ) -> None:
        self.pool, self.models, self.table, self.path = pool, models, table, path
        self.halfway = halfway or Halfway(sweeper.trainer)
        self._base = sweeper
        self._targets: RowMeter | None = None
        self._others: dict[str, RowMeter] = {}
        self._kept: dict[Hashable, Tensor] = {}
        self._known: dict[Signal, tuple[Tensor, Tensor]] = {}
        self._last: Sketcher | None = None

    @property
    def sweeper(self) -> Sweeper:
        """A sweeper of these rows under this model."""
        return self._base.on(self.models.load(self.path).module, self.table)

    @property
    def index(self) -> PoolIndex:
        """The rows that are measured; of the target set, its domains are the subtasks."""
        return self.table.index

    @property
    def target(self) -> RowMeter:
        """A meter of the target set's rows, under the same model."""
        if self._targets is None:
            if self.pool.target is None:
                raise ConfigError(
                    "the method aims at a target set, and the dataset has none",
                    got="dataset.target.path=null, dataset.target.from=null",
                    do="type dataset.target.path=FILE, or 'dataset.target.from=[DOMAIN,...]' to set some rows aside",
                )
            self._targets = self._other(self.pool.target, self.path)
        return self._targets

    def forget(self) -> None:
        """Drop what was measured: the model in training has moved on."""
        self._kept.clear()
        self._known.clear()
        for meter in (self._targets, *self._others.values()):
            if meter is not None:
                meter.forget()

    def once(self, what: Hashable, measure: Callable[[], Tensor]) -> Tensor:
        """What `measure` gives under this model, measured once until `forget`."""
        if what not in self._kept:
            self._kept[what] = measure()
        return self._kept[what]

    def know(self, signal: Signal, ids: Tensor, values: Tensor) -> None:
        """Answer for `signal` on rows `ids` (n,), ascending, with values (n, ...), until `forget`."""
        self._known[signal] = ids, values

    def values(self, signal: Signal, ids: Tensor) -> Tensor:
        """Values (n, ...) of a signal on rows `ids` (n,): looked up where all are known, else measured."""
        if signal not in self._known:
            return signal.measure(self, ids)
        known, values = self._known[signal]
        if torch.equal(known, ids):
            return values
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        return values[place] if torch.equal(known[place], ids) else signal.measure(self, ids)

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Summed target-token losses (n,) float64 in nats and target tokens (n,) of rows `ids` (n,)."""
        both = self._once("losses", ids, lambda: torch.stack(self.sweeper.losses(ids), 1))  # (n, 2)
        return both[:, 0], both[:, 1]

    def states(self, ids: Tensor, *, layer: int, pooling: Pooling) -> Tensor:
        """Pooled hidden states (n, width) float32 of the tokens that the model reads: the last of a row is left out."""
        return self._once(("states", layer, pooling), ids, lambda: self._states(ids, layer, pooling))

    def sentences(self, ids: Tensor, encoder: str) -> Tensor:
        """Embeddings (n, width) float32 of the text of rows by a sentence encoder."""
        return self._once(("sentences", encoder), ids, lambda: self._sentences(ids, encoder))

    def sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        """Sketches (n, d) float32 of the gradient of each row's loss."""
        return self._once(sketch, ids, lambda: self._sketches(ids, sketch))

    def lookahead(
        self,
        ids: Tensor,
        targets: Tensor,
        ask: Lookahead,
        *,
        shares: Callable[[Tensor], Tensor] | None = None,
        keep: bool = False,
    ) -> Looked:
        """What a virtual step on rows `ids` (n,) tells of them, for the loss of rows `targets` (M,) of the target."""
        moments = self.models.load(self.path).moments() if ask.adam else None
        step = VirtualStep(self.sweeper, self.target.sweeper, ask, moments=moments)
        return step.look(ids, targets, shares, keep=keep)

    def slope(
        self, ids: Tensor, coefficients: Tensor, targets: Tensor, *, at: Mapping[str, Tensor] | None = None
    ) -> Slope:
        """The gradient of sum_i c_i l_i + L at `at`, l of rows `ids` (n,), L of rows `targets` (M,) of the target."""
        return Elsewhere(self.sweeper, self.target.sweeper).slope(ids, coefficients, targets, at)

    def along(self, ids: Tensor, descent: Descent, *, norms: bool) -> AlongDescent:
        """What the gradients of rows are along a descent from the model that aims at the target set."""
        return rows_along(self.sweeper, self.target.sweeper, ids, descent, norms=norms, halfway=self.halfway)

    def learnt(self, ids: Tensor, places: Tensor, scores: Tensor, scorer: Scorer) -> Tensor:
        """Scores (n,) float64 of rows by a model that learns them from those at `places` (m,) in `ids`."""
        if scorer.named is None:
            model = copy.deepcopy(self.models.load(self.path).module.model)
        else:
            model = self.models.new(scorer.named, seed=scorer.seed)
        return learnt_scores(self.sweeper, model, ids, places, scores, scorer, self.halfway)

    def tokens(self, ids: Tensor) -> list[Tensor]:
        """The tokens (n_i,) int64 of each row."""
        return self._base.on(self._base.module, self.table).tokens(ids)

    def texts(self, ids: Tensor) -> list[str]:
        """The text of each row, without special tokens."""
        return self._base.on(self._base.module, self.table).texts(ids)

    def documents(self, ids: Tensor) -> Parts:
        """The documents that rows hold, by their ids."""
        assert isinstance(self.table, RowTable), "rows of no pool have no documents"
        spans = self.table.documents(ids)
        names = self.pool.documents.ids
        return Parts(spans.row, [names[k] for k in spans.document.tolist()], spans.length)

    def examples(self, ids: Tensor) -> list[Example]:
        """The rows with what is predicted in them."""
        found = self.table.read(ids)
        learnt = torch.ones_like(found.tokens, dtype=torch.bool) if found.targets is None else found.targets
        learnt[:, :1] = False
        lengths = found.lengths.tolist()
        return [Example(t[:n], m[:n]) for t, m, n in zip(found.tokens, learnt, lengths, strict=True)]

    def of(self, examples: list[Example]) -> Meter:
        """A meter of rows that are in no pool, under the same model."""
        return self._other(ExampleRows(examples, pad=self.pool.pad_id), self.path)

    def under(self, model: str) -> RowMeter:
        """The same rows under the model of a finished run or of one of its checkpoints."""
        if model not in self._others:
            self._others[model] = self._other(self.table, model)
        return self._others[model]

    def checkpoints(self, run: str) -> list[Checkpoint]:
        """The checkpoints that a finished run has kept, oldest first, with their weights."""
        return self.models.checkpoints(run)

    @property
    def language(self) -> Language:
        """Text in and out of the model."""
        return make_language(self.sweeper, self.pool)

    def _other(self, table: RowTable | ExampleRows, path: str | None) -> RowMeter:
        return RowMeter(self._base, self.pool, self.models, table=table, path=path, halfway=self.halfway)

    # ---- passes ------------------------------------------------------------------------------------------------

    def _states(self, ids: Tensor, layer: int, pooling: Pooling) -> Tensor:
        sweeper = self.sweeper
        model = sweeper.module.model
        depth = model.config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ConfigError("the model has no such layer", got=f"layer={layer}", allowed=f"{-depth - 1} to {depth}")

        def pooled(part: Tensor) -> Tensor:
            batch = sweeper.batch(part)
            with sweeper.trainer.precision_plugin.forward_context():
                out = base_output(
                    model,
                    input_ids=batch.inputs,
                    position_ids=batch.positions,
                    use_cache=False,
                    output_hidden_states=layer not in (-1, depth),
                )
            states = out.last_hidden_state if layer in (-1, depth) else out.hidden_states[layer]  # (b, L, width)
            return pool_states(states.float(), batch.lengths, pooling)  # (b, width)

        return sweeper.spread(ids, pooled, passes=1.0)

    def _sentences(self, ids: Tensor, encoder: str) -> Tensor:
        sweeper = self._base.on(self._base.module, self.table)
        device = sweeper.module.device

        def embedded(part: Tensor) -> Tensor:
            texts = sweeper.texts(part)
            return sentence_embeddings(texts, encoder, device=device, batch_size=sweeper.batch_size)

        found = sweeper.spread(ids, embedded, passes=0.0)
        flops = encoder_flops(encoder, int(self.index.inputs_of(ids).sum()), device=device)
        sweeper.clock.add(sweeper.purpose, flops=flops)
        return found

    def _sketches(self, ids: Tensor, sketch: Sketch) -> Tensor:
        sweeper, sketcher = self.sweeper, self._sketcher(sketch)

        def sketched(part: Tensor) -> Tensor:
            batch = sweeper.batch(part)
            with sweeper.trainer.precision_plugin.forward_context():
                return sketcher(batch.inputs, batch.targets, batch.positions, ids=part)  # (b, d)

        # A backward pass holds all activations, which no sweep without gradients does: parts as small as in training.
        rows = sweeper.gradient_rows
        return sweeper.spread(ids, sketched, passes=sketch.passes, backwards=1.0, gradients=True, rows=rows)

    def _sketcher(self, sketch: Sketch) -> Sketcher:
        """A sketcher of the model; kept, since drawing random signs takes a while, unless moments may have changed."""
        module, moments = self.models.load(self.path)
        model, chunk = module.model, module.objective.chunk
        if sketch.adam != "none":
            return Sketcher(model, sketch, moments=moments(), chunk=chunk)
        if self._last is None or self._last.sketch != sketch or self._last.model is not model:
            self._last = Sketcher(model, sketch, chunk=chunk)
        return self._last

    def _once(self, what: Hashable, ids: Tensor, measure: Callable[[], Tensor]) -> Tensor:
        """Of a whole target set, what was measured before; anything else anew."""
        if self.table is not self.pool.target or len(ids) != self.index.rows:
            return measure()
        return self.once(what, measure)  # asked for in the order of ids, as all do who want the whole set
