"""`regimen score`: any signal or selector over a corpus, without training, as Parquet with a manifest."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from regimen import __version__
from regimen.core.errors import ConfigError
from regimen.core.signal import DomainSignal, Signal, TokenSignal
from regimen.core.strategy import Observation, Selection, Selector
from regimen.data.locking import locked
from regimen.data.pool import Pool
from regimen.runs import parting
from regimen.runs.agreement import convene, join_in, marked, other_ranks
from regimen.runs.attempt import Attempt, await_decision, await_file, tell
from regimen.runs.experiment import make_pool
from regimen.runs.identity import run_name, score_hash, signal_identity
from regimen.runs.locks import held
from regimen.runs.ranks import global_rank, next_token
from regimen.runs.run import Run
from regimen.runs.score_shards import Shard, leave_nothing, read_parts, refuse_what_needs_all_rows, shard_of
from regimen.runs.score_tables import FILE, MANIFEST, part_of, ranks_of, table_of, write_scores
from regimen.runs.staging import Staging, follow
from regimen.runs.store import Store
from regimen.runs.strategies import instantiate, make_strategies
from regimen.runs.train import join, lead, quiet_libraries, remove_if_empty
from regimen.training.callbacks.strategies import SelectionCallback
from regimen.training.capabilities import refuse_unsupported

UNITS = ("row", "document")


def score(settings: Mapping[str, Any]) -> Path:
    """Score every training row, or document, of the pool. Returns the folder with scores.parquet and manifest.json.

    With `shard.count` above 1, one part of the rows: whoever finds all the parts there makes them the whole.
    Raises ConfigError where there is neither a selector nor a signal to score by.
    """
    quiet_libraries()
    wanted, shard = settings["score"], shard_of(settings)
    if wanted["unit"] not in UNITS:
        raise ConfigError("unknown unit of scores", got=f"score.unit={wanted['unit']}", allowed=", ".join(UNITS))
    signal = _signal(wanted["by"])
    if signal is None and not any(p.kind == "selector" for p in make_strategies(_rehearsable(settings))):
        raise ConfigError(
            "there is nothing to score by",
            got=f"method={settings['choices']['method']}, score.by=null",
            allowed="a method that selects rows, or a signal",
            do="regimen score method=less ..., or regimen score 'score.by=${signal.loss}' ...",
        )
    if signal is not None:
        refuse_unsupported(settings["trainer"]["strategy"], "score.by", signal)
    refuse_what_needs_all_rows(shard, signal)
    whole = place(settings)
    folder = whole if shard.count == 1 else shard.folder(whole)
    token = next_token()
    if global_rank() > 0:
        attempt = await_decision(folder, token)
        if attempt.action == "begin":
            pool = join_in(folder, attempt, settings["paths"], stores=True)
            _score(settings, folder, signal, token, pool)
        return whole
    if (whole / MANIFEST).is_file():
        if not parting.alone():
            tell(folder, Attempt("skip", None, token))
        print(f"scored before: {whole / FILE}", file=sys.stderr)
        return whole
    with held(folder):
        if (folder / MANIFEST).is_file():
            tell(folder, Attempt("skip", None, token))
        else:
            try:
                _score(settings, folder, signal, token, _agreed_pool(settings, folder, token))
            except BaseException:
                remove_if_empty(folder)
                leave_nothing(folder, whole)
                raise
    if shard.count > 1:
        _merge(settings, whole, shard)
    return whole


def _agreed_pool(settings: Mapping[str, Any], folder: Path, token: str) -> Pool:
    """Rank 0: the pool, once every other rank sees it too."""
    pool = make_pool(settings, progress=settings["trainer"]["progress"] != "none")
    store, others = Store(Path(settings["paths"]["store"])), other_ranks(settings["trainer"])
    store.ready()
    attempt = Attempt("begin", None, token, pool.path.name, pool.fingerprint, agreed=not others)
    with marked(store.root, token, others=others):
        tell(folder, attempt)
        convene(folder, attempt, others=others)
    return pool


def _merge(settings: Mapping[str, Any], whole: Path, shard: Shard) -> None:
    """Make the whole of its parts, if they are all there. The last parts to finish may do so at once, so they queue."""
    with locked(whole / ".lock", setting="run_dir=DIR or paths.outputs=DIR"):
        if (whole / MANIFEST).is_file():
            return
        parts = read_parts(shard.all_folders(whole), FILE, MANIFEST)
        if parts is None:
            print(f"shard {shard.index} of {shard.count} is scored; the scores are whole when all are")
            return
        scores, told = parts
        ranks = ranks_of(scores, torch.empty(0, dtype=torch.int64))
        pool = make_pool(settings, progress=False)
        write_scores(whole, table_of(told["unit"], pool, scores, ranks, None), {**told, "shards": shard.count})


def place(settings: Mapping[str, Any]) -> Path:
    """Where the scores go: `run_dir`, or a name and a hash under `paths.outputs`."""
    if settings["run_dir"]:
        return Path(settings["run_dir"]).expanduser()
    root = Path(settings["paths"]["outputs"]).expanduser()
    return root / f"scores-{run_name(settings)}-{score_hash(settings)}"


def _signal(by: Any) -> Signal | None:
    if by is None:
        return None
    made = instantiate("score.by", by) if isinstance(by, Mapping) else by
    if not isinstance(made, Signal) or isinstance(made, DomainSignal | TokenSignal):
        raise ConfigError(
            "score.by must be a signal of rows", got=made, allowed="a mapping with _target_, or e.g. '${signal.loss}'"
        )
    return made


def _rehearsable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The strategies without what stages will give: enough to know their kinds."""
    from regimen.runs.handover import rehearsed, resolve

    found: dict[str, Any] = resolve(settings["strategies"], rehearsed(("a",)))
    return found


def _score(settings: Mapping[str, Any], folder: Path, signal: Signal | None, token: str, pool: Pool) -> None:
    done = []
    if settings["stages"]:
        leads = global_rank() == 0
        done = Staging(settings, folder, token, pool, lead).run() if leads else follow(folder, token, join)
    # Nothing is served, so that no budget is beyond the repetition cap.
    uncapped = {**settings, "logger": {}, "dataset": {**settings["dataset"], "max_epochs_per_domain": None}}
    run = Run(uncapped, folder, Attempt("begin", None, "score"), pool, None, global_rank(), done)
    scoring = _Scoring(run, signal)
    run.trainer.callbacks[:] = [scoring]
    run.trainer.predict(run.module, dataloaders=[0], return_predictions=False)  # moves the model, starts the ranks
    if run.trainer.is_global_zero:
        unit, rows = settings["score"]["unit"], pool.train.index.rows
        if partial := shard_of(settings).count > 1:
            table = part_of(scoring.ids, scoring.scores)
        else:
            table = table_of(unit, pool, scoring.scores, scoring.ranks, scoring.kept)
        told = _told(settings, pool, run, scoring) | ({"pool_rows": rows} if partial else {})
        write_scores(folder, table, told, announced=not partial)
    else:
        await_file(folder / MANIFEST)


class _Scoring(pl.Callback):
    """Measures and decides when the model is where it belongs."""

    def __init__(self, run: Run, signal: Signal | None) -> None:
        self.run, self.signal = run, signal
        self.scores = self.ranks = torch.empty(0)
        self.ids = torch.empty(0, dtype=torch.int64)
        self.kept: Tensor | None = None
        self.told: Any = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        context = self.run.context
        ids = shard_of(self.run.experiment.settings).ids(context.index.rows)
        self.ids = ids
        if self.signal is not None:
            assert context.board is not None
            self.scores = _column(self.signal, context.board.values(self.signal, ids, step=0))
            self.told = signal_identity(self.signal)
            first = torch.empty(0, dtype=torch.int64)
        else:
            placed = next(p for p in self.run.experiment.strategies if isinstance(p.strategy, Selector))
            callback = SelectionCallback(placed.name, placed.strategy, placed.trigger, context)
            seen = callback.seen(0, ids)
            first = _decided(placed.strategy, callback.state, seen)
            self.scores = placed.strategy.row_scores(callback.state, seen)
            self.told = signal_identity(placed.strategy)
            self.kept = torch.isin(ids, first)
        if len(ids) == context.index.rows:
            self.ranks = ranks_of(self.scores, first)


def _decided(selector: Selector, state: Any, seen: Observation) -> Tensor:
    """Ids (M,) in the selector's own order, best first."""
    decision = selector.decide(state, seen)
    selector.checked(decision, seen)
    return decision.ids if isinstance(decision, Selection) else decision


def _column(signal: Signal, values: Tensor) -> Tensor:
    if values.dim() != 1:
        raise ConfigError(
            f"{type(signal).__name__} gives vectors, and a score is one number",
            got=f"{tuple(values.shape)}",
            do="score by a method that aims at a target set, e.g. method=near",
        )
    return values


def _told(settings: Mapping[str, Any], pool: Pool, run: Run, scoring: _Scoring) -> dict[str, Any]:
    """What the manifest says of how the scores were made."""
    return {
        "unit": settings["score"]["unit"],
        "settings": score_hash(settings),
        "by": scoring.told,
        "pool": pool.fingerprint,
        "tokenizer": pool.tokenizer_fingerprint,
        "model": run.rows.identity(0),
        "seed": settings["seed"],
        "measuring": vars(run.context.clock.charges["measuring"]),
        "stages": vars(run.context.clock.charges["stages"]),
        "version": __version__,
    }
