"""`regimen export`: the trained model and what was decided, for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from regimen.core.errors import ConfigError, RunError
from regimen.core.files import write_json
from regimen.core.stream import Stream
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.runs.models import make_model
from regimen.runs.references import model_weights, read_run
from regimen.runs.summary import fingerprints
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.tensors import internalise


def export(run: Path, to: Path) -> Path:
    """Write a Hugging Face model and tokenizer, `rows.parquet` and `mixture.json` of run folder `run` to folder `to`.

    rows.parquet: id, domain, documents (ids of those the row holds), kept (may be drawn), served (times).
    Raises ConfigError where the run is not finished, its data changed, or `to` exists.
    """
    settings, summary = read_run(run)
    if to.exists():
        raise ConfigError("the folder to export to exists", got=f"to={to}", do="name a new folder")
    pool = make_pool(settings, progress=False)
    if fingerprints(settings, pool)["pool"] != summary["fingerprints"]["pool"]:
        raise ConfigError("the run's data changed since", got=run, do="bring the data back, then export again")
    path = checkpoints(run)[-1]
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    temporary = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _export_model(settings, pool, saved["state_dict"], temporary)
        _export_rows(settings, pool, saved, run, temporary)
        write_json(temporary / "mixture.json", summary["mixture"])
        temporary.replace(to)
    except OSError as error:
        raise RunError(
            f"cannot write {to}", got=error.strerror or error, do="free some space, or name another folder: to=DIR"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return to


def _export_model(settings: dict[str, Any], pool: Pool, weights: dict[str, Any], to: Path) -> None:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = make_model({**settings["model"], "compile": False}, pool)
    model.load_state_dict(model_weights(weights))
    model.config.use_cache = True
    model.save_pretrained(to)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(pool.tokenizer_path).save_pretrained(to)


def _export_rows(settings: dict[str, Any], pool: Pool, saved: dict[str, Any], run: Path, to: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    loader = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    state = internalise(loader["stream"], run / "plans")
    index = pool.train.index
    cap = settings["dataset"]["max_epochs_per_domain"]
    stream = Stream(index, seed=state["seed"], batch_size=state["batch_size"], total_steps=0, max_epochs=cap)
    stream.total_steps = state["step"]
    stream.load_state_dict(state)
    ids = torch.arange(index.rows)
    kept = torch.ones(index.rows, dtype=torch.bool)
    if stream.plan.keep is not None:
        kept = torch.isin(ids, stream.plan.keep)
    names = [pool.domains[k] for k in index.domain_of(ids).tolist()]
    spans = pool.train.documents(ids)
    documents: list[list[str]] = [[] for _ in range(index.rows)]
    for row, document in zip(spans.row.tolist(), spans.document.tolist(), strict=True):
        documents[row].append(pool.documents.ids[document])
    columns = {"id": ids.numpy(), "domain": names, "documents": documents}
    table = pa.table({**columns, "kept": kept.numpy(), "served": stream.counts().numpy()})
    pq.write_table(table, to / "rows.parquet")
