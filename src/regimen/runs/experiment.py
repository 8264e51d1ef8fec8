"""From a resolved configuration to everything a run consists of. `check` stops before the trainer is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regimen.core.errors import ConfigError, RunError
from regimen.core.learning import Learner
from regimen.core.measuring import GRADIENT
from regimen.core.signal import DomainSignal, Signal, TokenSignal
from regimen.core.strategy import Mixer, Selector, Weighter
from regimen.core.stream import Stream
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.runs.budget import total_steps
from regimen.runs.models import make_model
from regimen.runs.ranks import processes
from regimen.runs.references import refuse_unknown_models
from regimen.runs.strategies import Placed, make_strategies
from regimen.training.capabilities import refuse_moving, refuse_unsupported
from regimen.training.cost import forward_flops, training_flops

_COUNTED = 100_000  # steps of a run whose decisions are counted one by one
_GPU_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class Experiment:
    """A run before its trainer: data, strategies, model and the length of the training."""

    settings: Mapping[str, Any]
    pool: Pool
    strategies: list[Placed]
    model: nn.Module
    steps: int
    flops_per_token: float  # of a forward pass
    training_flops_per_token: float  # of a forward and a backward pass
    stage_flops: float = 0.0

    @property
    def batch_rows(self) -> int:
        """Rows of a global batch."""
        return int(self.settings["trainer"]["global_batch_size"])

    @property
    def batch_tokens(self) -> float:
        """Mean target tokens of a global batch."""
        index = self.pool.train.index
        return self.batch_rows * float(index.domain_tokens().sum()) / index.rows

    @property
    def batch_inputs(self) -> float:
        """Mean tokens of a global batch that the model reads, prompts included."""
        index = self.pool.train.index
        if index.input_tokens is None:
            return self.batch_tokens
        return self.batch_rows * float(index.input_tokens.double().mean())

    def measured_rows(self, steps: int) -> dict[str, float]:
        """Rows that each strategy has measured in a run of `steps` steps, in forward passes over a row."""
        seen: dict[int, set[Signal]] = {}  # by step: what a selector measures is not measured again for an orderer
        return {p.name: self._measured(p, steps, seen) for p in self.strategies}

    def flops(self, steps: int) -> float:
        """Model FLOPs of a run of `steps` steps: training, measuring, and the stages before it."""
        measuring = sum(self.measured_rows(steps).values()) * self.batch_inputs / self.batch_rows
        return self.training_flops(steps) + measuring * self.flops_per_token + self.stage_flops

    def training_flops(self, steps: int) -> float:
        """Model FLOPs of the training alone."""
        return steps * self.batch_inputs * self.training_flops_per_token

    def _measured(self, placed: Placed, steps: int, seen: dict[int, set[Signal]]) -> float:
        strategy, trigger, pool_rows = placed.strategy, placed.trigger, self.pool.train.index.rows
        needs = set(strategy.needs())
        if isinstance(strategy, Weighter):
            references = {signal.reference for signal in needs if isinstance(signal, TokenSignal)}
            passes = len(references) + self._weighed_ahead(strategy)  # a reference is taken to be as large as the model
            of_rows = [s for s in needs if not isinstance(s, TokenSignal | DomainSignal)]
            passes += sum(s.passes() * self._lighter(s) for s in of_rows)
            lessons = 0.0
            if isinstance(strategy, Learner):
                each = strategy.passes(self.batch_rows), strategy.backwards(self.batch_rows)
                lessons = strategy.lessons_in(steps) * self._for_trained(*each)
            weighed = max(steps - strategy.first_step(steps), 0)
            return (passes * self.batch_rows + self._surveyed(needs)) * weighed + lessons
        assert trigger is not None, "only a weighter has no trigger"
        if not needs:
            return 0.0
        if isinstance(strategy, Mixer):
            return self._surveyed(needs) * self.decisions(placed, steps)
        if steps >= _COUNTED:  # too many to look at each
            decisions = 1 if strategy.measures_once else trigger.count(steps)
            return sum(self._work(signal, pool_rows) for signal in needs) * decisions
        total = 0.0
        for step in (step for step in range(steps) if trigger.fires(step, steps)):
            rows = (steps - step) * self.batch_rows
            if isinstance(strategy, Selector):
                rows = strategy.candidates or pool_rows
            new = needs - seen.get(step, set())
            total += sum(self._work(signal, min(rows, pool_rows)) for signal in new)
            seen.setdefault(step, set()).update(needs)
            if strategy.measures_once:
                break
        return total

    def _work(self, signal: Signal, rows: int) -> float:
        """Forward passes over a row that measuring so many rows costs, with the target set."""
        return (signal.work(rows) + self._beside(signal)) * self._lighter(signal)

    def _lighter(self, signal: Signal) -> float:
        """What part of its passes is left where a backward pass is for adapters alone."""
        return self._for_trained(signal.passes(), signal.backwards()) / signal.passes() if signal.backwards() else 1.0

    def _for_trained(self, passes: float, backwards: float) -> float:
        """Passes, where `backwards` among them, each counted as two, are for the weights that are trained alone."""
        saved = GRADIENT - self.training_flops_per_token / self.flops_per_token  # 0 for a whole model
        return passes - backwards * saved

    def _beside(self, signal: Signal) -> float:
        """Forward passes over a row that measuring the target set costs."""
        target = self.pool.target
        return 0.0 if target is None else signal.beside(target.index) * self.batch_rows / self.batch_inputs

    def _surveyed(self, needs: set[Signal]) -> float:
        """Forward passes over a row of one survey of the domains."""
        rows, k = self.pool.validation.index.rows, len(self.pool.domains)
        domains = [signal for signal in needs if isinstance(signal, DomainSignal)]
        return sum(s.rows(batch=self.batch_rows, validation=rows, domains=k) * self._lighter(s) for s in domains)

    def decisions(self, placed: Placed, steps: int | None = None) -> int:
        """How often a strategy decides in a run of `steps` steps."""
        steps, trigger, index = steps or self.steps, placed.trigger, self.pool.train.index
        assert trigger is not None
        if steps >= _COUNTED:
            return trigger.count(steps)
        return sum(trigger.fires(step, steps) and placed.strategy.ready(step, index) for step in range(steps))

    def _weighed_ahead(self, weighter: Weighter) -> float:
        """The part of a batch that is measured before it is trained on: all micro-batches but the first."""
        trainer, rows = self.settings["trainer"], self.batch_rows
        world = processes(trainer)
        micro = trainer["micro_batch_size"] or max(rows // world, 1)
        return 1 - world * micro / rows if weighter.scope == "batch" else 0.0

    def stream(self) -> Stream:
        """The stream of a new run. Raises ConfigError where the budget exceeds the repetition cap."""
        return Stream(
            self.pool.train.index,
            seed=self.settings["seed"],
            batch_size=self.batch_rows,
            total_steps=self.steps,
            max_epochs=self.settings["dataset"]["max_epochs_per_domain"],
        )


def make_pool(settings: Mapping[str, Any], *, progress: bool) -> Pool:
    """The prepared pool of `dataset.*`, prepared now where it is not there yet."""
    path = prepare_pool(settings, progress=progress)
    assert path is not None, "one shard of one makes a whole pool"
    return Pool.open(path)


def prepare_pool(settings: Mapping[str, Any], *, progress: bool, shard: tuple[int, int] = (0, 1)) -> Path | None:
    """The folder of the pool, or None where other shards (index, count) are still to come."""
    root = Path(settings["paths"]["pools"]).expanduser()
    try:
        return prepare(settings["dataset"], root=root, shard_index=shard[0], shard_count=shard[1], progress=progress)
    except OSError as error:
        raise RunError(
            "the data cannot be prepared",
            got=f"{error.strerror or error}: {error.filename or root}",
            allowed="a folder that can be written, with room for the tokens and the text",
            do="free some space, or choose another folder: paths.pools=DIR, or the environment variable REGIMEN_HOME",
        ) from error


def _refuse_uneven_draw(strategies: list[Placed], rows: int) -> None:
    for p in strategies:
        if isinstance(p.strategy, Mixer) and p.strategy.draw == "one_domain" and rows % p.strategy.draw_groups:
            raise ConfigError(
                "the global batch cannot be cut into equal parts of one domain each",
                got=f"trainer.global_batch_size={rows}, strategies.{p.name}.draw_groups={p.strategy.draw_groups}",
                allowed=", ".join(str(g) for g in range(1, rows + 1) if rows % g == 0),
                do=f"set strategies.{p.name}.draw_groups to one of these, or strategies.{p.name}.draw=multinomial",
            )


def refuse_no_target(strategies: list[Placed], pool: Pool) -> None:
    """Raises ConfigError where a strategy aims at a target set and the pool has none."""
    for p in strategies if pool.target is None else ():
        learns = isinstance(p.strategy, Learner) and p.strategy.aims()
        if learns or p.strategy.needs_of_target() or any(signal.aims() for signal in p.strategy.needs()):
            raise ConfigError(
                f"{p.name} aims at a target set, and the dataset has none",
                got="dataset.target.path=null, dataset.target.from=null",
                do="type dataset.target.path=FILE, or 'dataset.target.from=[DOMAIN,...]' to set some rows aside",
            )


def _refuse_missing_gpu(accelerator: str) -> None:
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            "there is no GPU that torch can use",
            got=f"trainer.accelerator={accelerator}",
            do="trainer=cpu, or look at nvidia-smi and at the build of torch: python -c 'import torch; "
            "print(torch.version.cuda)'",
        )


def _refuse_gpu_attention(settings: Mapping[str, Any], *, here: bool) -> None:
    """Such a model can be built anywhere, but its first backward pass on a CPU would end in a traceback.

    here: whether it is this machine that trains; what `auto` finds elsewhere is not known.
    """
    kernel, accelerator = settings["model"]["attn_implementation"], settings["trainer"]["accelerator"]
    found_none = accelerator == "auto" and here and not torch.cuda.is_available()
    if kernel in _GPU_ATTENTION and (accelerator == "cpu" or found_none):
        raise ConfigError(
            "this attention can be trained on a GPU alone",
            got=f"model.attn_implementation={kernel}, trainer.accelerator={accelerator}",
            allowed="model.attn_implementation=sdpa or eager on a CPU",
            do="type model.attn_implementation=sdpa, or train on a GPU: trainer=gpu",
        )


def _context(pool: Pool) -> int:
    """Tokens of a row, by which the FLOPs of a token are counted."""
    inputs = pool.train.index.input_tokens
    if inputs is None:
        return pool.seq_len
    n = inputs.double()
    return round(float((n * n).sum() / n.sum()))  # see rows_flops


def make_experiment(
    settings: Mapping[str, Any], pool: Pool, *, meta: bool = False, stage_flops: float = 0.0
) -> Experiment:
    """Build a run. meta: shapes only, no memory for the model (for `check`). stage_flops: that its stages cost."""
    rows = settings["trainer"]["global_batch_size"]
    if not isinstance(rows, int) or rows < 1:
        raise ConfigError("trainer.global_batch_size counts rows", got=rows, allowed="1 or more")
    strategies = make_strategies(settings["strategies"])
    _refuse_uneven_draw(strategies, rows)
    refuse_no_target(strategies, pool)
    for p in strategies:
        measured = (*p.strategy.needs(), *p.strategy.needs_of_target(), getattr(p.strategy, "by", None))
        if isinstance(p.strategy, Learner):
            measured = (*measured, p.strategy)
            if p.strategy.keeps:
                refuse_moving(settings["trainer"]["strategy"], f"strategies.{p.name}")
        for asked in measured:
            refuse_unsupported(settings["trainer"]["strategy"], f"strategies.{p.name}", asked)
            if isinstance(asked, Signal):
                refuse_unknown_models(asked)
    if not meta:
        _refuse_missing_gpu(settings["trainer"]["accelerator"])
    _refuse_gpu_attention(settings, here=not meta)
    with torch.device("meta" if meta else "cpu"):
        model = make_model({**settings["model"], "compile": settings["model"]["compile"] and not meta}, pool)
    per_token = forward_flops(model, _context(pool)), training_flops(model, _context(pool))
    experiment = Experiment(settings, pool, strategies, model, 0, *per_token, stage_flops)
    experiment.steps = total_steps(
        settings["budget"],
        batch_rows=experiment.batch_rows,
        batch_tokens=experiment.batch_tokens,
        pool_rows=pool.train.index.rows,
        flops_of=experiment.flops,
    )
    return experiment
