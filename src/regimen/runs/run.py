"""The objects of one run, wired: trainer, loader, module, callbacks in their fixed sequence; and its training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from regimen.core.errors import ConfigError, RegimenError, RunError
from regimen.core.files import JsonLines, cut_json_lines, write_atomically, write_json
from regimen.core.stream import Stream
from regimen.data.pool import Pool
from regimen.runs import preempted, resuming, summary
from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_experiment
from regimen.runs.failures import lost_process, out_of_memory
from regimen.runs.handover import left
from regimen.runs.measurements import Measurements
from regimen.runs.optimizers import make_optimizer
from regimen.runs.references import RunModels, load_model, reference_folders, refuse_unreadable
from regimen.runs.row_measurements import ModelIdentity, RowMeasurements, passes_between
from regimen.runs.staging import Done, resolved, stage_costs
from regimen.runs.store import Store
from regimen.runs.trackers import make_trackers
from regimen.runs.trainer import make_trainer
from regimen.signals.board import SignalBoard
from regimen.training.callbacks.averaging import AverageWeights
from regimen.training.callbacks.checkpoint import RunState, SaveCheckpoints, clear_unfinished, step_of
from regimen.training.callbacks.evaluate import Evaluate
from regimen.training.callbacks.following import FollowScores
from regimen.training.callbacks.metrics import MetricFiles, Metrics, peak_memory_mb
from regimen.training.callbacks.preemption import NoteSignals, StopTogether
from regimen.training.callbacks.progress import ShowProgress
from regimen.training.callbacks.steps import GatherSteps
from regimen.training.callbacks.strategies import (
    MixingCallback,
    OrderingCallback,
    SelectionCallback,
    StrategyCallback,
)
from regimen.training.callbacks.weighting import WeightingCallback
from regimen.training.context import RunContext
from regimen.training.cost import CostClock
from regimen.training.loader import PlannedLoader
from regimen.training.meter import RowMeter
from regimen.training.module import LanguageModule, Objective
from regimen.training.reference import Reference
from regimen.training.survey import DomainSurveyor
from regimen.training.sweep import Sweeper


class Run:
    """The objects of one run, wired."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        attempt: Attempt,
        pool: Pool,
        sweep: str | None,
        rank: int,
        done: list[Done],
    ) -> None:
        self.settings, self.folder, self.attempt, self.rank = settings, folder, attempt, rank
        trainer_settings = settings["trainer"]
        if trainer_settings["threads"]:
            torch.set_num_threads(trainer_settings["threads"])
        pl.seed_everything(settings["seed"], verbose=False)
        staged = stage_costs(done)
        built = resolved(settings, done)
        self.experiment = make_experiment(built, pool, stage_flops=staged["flops"])
        stream = self.experiment.stream()
        self.trainer = make_trainer(
            trainer_settings, folder, self.experiment.steps, make_trackers(settings, folder, sweep=sweep)
        )
        loader = self._loader(pool, stream)
        record = JsonLines(folder / "record.jsonl")
        clock = CostClock()
        clock.add("stages", **staged)
        self.context = RunContext(folder, settings["seed"], loader, clock, self.experiment.steps, record)
        self.module = LanguageModule(
            self.experiment.model,
            Objective(**settings["objective"]),
            make_optimizer(settings["optimizer"], self.experiment.steps),
        )
        self.files = MetricFiles(folder, pool.domains, self.context)
        self.evaluate = Evaluate(self.context, self.files, settings["evaluation"]["at"])
        average = settings["optimizer"].get("average") or {"kind": "none", "start": 0.0, "decay": 0.0}
        self.averaging = AverageWeights(self.context, self.module.model, **average)
        self.follow = FollowScores(self.context, decile_rows=settings["evaluation"].get("decile_rows", 0))
        self.evaluate.as_evaluated = self.follow.as_evaluated = self.averaging.applied
        self._measure_with(pool)
        self._compare_with(pool)
        self.trainer.callbacks[:] = [*self.trainer.callbacks, *self._callbacks()]
        self.summary = summary.beginning(settings, pool, self.experiment.strategies, self.experiment.model)
        if done:
            self.summary["stages"] = [{**asdict(d), "cost": d.cost()} for d in done]

    def _loader(self, pool: Pool, stream: Stream) -> PlannedLoader:
        """The training rows; how many micro-batches a step has is known from here on."""
        self.trainer.accumulate_grad_batches = accumulation = self._accumulation()
        return PlannedLoader(
            pool.train,
            stream,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            accumulation=accumulation,
            document_mask=self.settings["dataset"]["document_mask"],
            plans=self.folder / "plans",
            group_by_length=self.settings["trainer"]["group_by_length"],
        )

    def _accumulation(self) -> int:
        """Micro-batches per step and rank."""
        world, rows = self.trainer.world_size, self.experiment.batch_rows
        micro = self.settings["trainer"]["micro_batch_size"] or max(rows // world, 1)
        part = world * micro
        if rows % part:
            raise ConfigError(
                "the global batch does not divide over the ranks and micro-batches",
                got=f"trainer.global_batch_size={rows}, {world} ranks, trainer.micro_batch_size={micro}",
                do=f"set trainer.global_batch_size to a multiple of {part}, e.g. {-(-rows // part) * part}",
            )
        return int(rows // part)

    def _measure_with(self, pool: Pool) -> None:
        settings = self.settings
        shared: dict[str, Any] = {
            "clock": self.context.clock,
            "batch_size": settings["trainer"]["sweep_batch_size"],
            "gradient_rows": self.experiment.batch_rows // (self.trainer.world_size * self.context.loader.accumulation),
            "token_bytes": pool.token_bytes,
            "tokenizer": pool.tokenizer_path,
            "document_mask": settings["dataset"]["document_mask"],
        }
        measuring = Sweeper(self.trainer, self.module, pool.train, purpose="measuring", **shared)
        validation = Sweeper(self.trainer, self.module, pool.validation, purpose="measuring", **shared)
        surveyor = DomainSurveyor(pool, training=measuring, validation=validation)
        store, device = Store(Path(settings["paths"]["store"])), self.trainer.strategy.root_device.type
        kept = Measurements(store, pool, asked_by=self.folder.name, write=self.rank == 0)
        self.rows = RowMeasurements(
            store,
            pool,
            folder=self.folder,
            trainer=self.trainer,
            clock=self.context.clock,
            identity=ModelIdentity(settings, self.module.model),
            part=passes_between(self.experiment.flops_per_token * pool.seq_len, device),
            say=settings["trainer"]["progress"] != "none",
        )
        models = RunModels(pool, self.trainer, self.module)
        meter = RowMeter(measuring, pool, models, table=pool.train, halfway=self.rows.halfway)
        self.context.target = None if pool.target is None else pool.target.index
        self.context.board = SignalBoard(meter, surveyor, seed=settings["seed"], kept=kept, rows=self.rows)
        self.evaluate.sweeper = Sweeper(self.trainer, self.module, pool.validation, purpose="evaluation", **shared)
        self.follow.sweeper = self.evaluate.sweeper.on(self.module, pool.train)

    def _compare_with(self, pool: Pool) -> None:
        """Load the reference models that strategies need."""
        strategies = [p.strategy for p in self.experiment.strategies]
        refuse_unreadable(strategies, pool)
        for folder in reference_folders(strategies):
            self.context.references[folder] = Reference(
                load_model(Path(folder), pool),
                chunk=self.module.objective.chunk,
                clock=self.context.clock,
                world=self.trainer.world_size,
            )

    def _callbacks(self) -> list[pl.Callback]:
        """Gather first, then the strategies in their fixed sequence, evaluation, metrics, and the save last."""
        wanted, context = self.settings["trainer"], self.context
        carriers = {"selector": SelectionCallback, "mixer": MixingCallback, "orderer": OrderingCallback}
        strategies: list[pl.Callback] = []
        for p in self.experiment.strategies:
            if p.kind == "weighter":
                strategies.append(WeightingCallback(p.name, p.strategy, context, log_every=wanted["log_every"]))
            else:
                strategies.append(carriers[p.kind](p.name, p.strategy, p.trigger, context))
        title = self.folder.name
        save = SaveCheckpoints(
            context,
            every_steps=wanted["save_every_steps"],
            every_minutes=wanted["save_every_minutes"],
            keep=wanted["keep_checkpoints"],
            at=wanted["save_at"],
        )
        notes = NoteSignals()
        return [
            notes,
            GatherSteps(context),
            *strategies,
            self.averaging,
            self.follow,
            self.evaluate,
            Metrics(context, self.files),
            ShowProgress(context, title, mode=wanted["progress"], every=wanted["log_every"]),
            StopTogether(context, notes),
            RunState(context),
            save,
        ]

    # ---- doing it ---------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end of the budget and write the summary; on an error write its reason."""
        if self.rank == 0:
            self._open_folder()
        outcome: tuple[str, str] | None = ("failed", "stopped by an error that the log of the run shows")
        try:
            with resuming.in_format(self.attempt.checkpoint, self.settings, self.trainer, self.module) as path:
                self.trainer.fit(self.module, self.context.loader, ckpt_path=path, weights_only=True)
            outcome = preempted.outcome(self.context.stopped_by)
        except RegimenError as error:
            outcome = ("failed", error.what)
            raise
        except torch.OutOfMemoryError as error:
            outcome = ("failed", "out of GPU memory")
            raise out_of_memory(self.settings, error) from error
        except RuntimeError as error:
            lost = lost_process(error, world=self.trainer.world_size)
            if lost is None:
                raise
            outcome = ("failed", lost.what)
            raise lost from error
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            outcome = ("interrupted", "stopped by the user")
            raise KeyboardInterrupt from None
        finally:
            if outcome is not None:
                self._close(*outcome)
        if self.context.stopped_by is not None:
            preempted.leave(self.context.stopped_by, step=self.context.loader.stream.step, rank=self.rank)
        self.rows.end()
        if self.rank == 0:
            self.summary |= summary.ending(self.context, self.evaluate.latest, peak_memory_mb=peak_memory_mb())
            self.summary["averaging"] = self.averaging.settings
            self.summary["gives"] = self._gives()
            write_json(self.folder / "summary.json", self.summary)
            self._say_where()

    def _gives(self) -> dict[str, Any]:
        """What this run hands to those that have it as a stage."""
        carried = [c for c in self.trainer.callbacks if isinstance(c, StrategyCallback)]  # type: ignore[attr-defined]
        given: dict[str, Any] = {}
        for callback in carried:
            for name, value in callback.gives().items():
                given[name] = left(self.folder, name, value)
        return given

    def _open_folder(self) -> None:
        """Make the folder tell of this attempt and of nothing after the checkpoint it starts from."""
        from omegaconf import OmegaConf

        clear_unfinished(self.folder)
        resumed = self.attempt.checkpoint
        step = step_of(Path(resumed)) if resumed else -1
        write_atomically(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(self.settings))))
        write_json(self.folder / "summary.json", self.summary)
        cut_json_lines(self.folder / "record.jsonl", lambda row: row["step"] <= step)
        self.files.cut(step)
        if resumed:
            print(f"resuming {self.folder} from step {step}", file=sys.stderr)

    def _close(self, status: str, reason: str) -> None:
        if self.rank == 0:
            self.summary |= {"status": status, "reason": reason, "steps": self.context.loader.stream.step}
            with contextlib.suppress(RunError):  # on a full disk the error that is on its way says more
                write_json(self.folder / "summary.json", self.summary)

    def _say_where(self) -> None:
        macro = self.summary["evaluation"]["macro"]
        print(
            f"{self.summary['name']}: {macro['bits_per_byte']:.4f} bits per byte (macro), "
            f"loss {macro['loss']:.4f}, {self.summary['seconds']['total']:.0f} s -> {self.folder}",
            file=sys.stderr,
        )
