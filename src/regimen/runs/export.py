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
from regimen.runs.lora import export_adapted, lora_of
from regimen.runs.models import base_model
from regimen.runs.references import evaluated_weights, read_run
from regimen.runs.summary import fingerprints
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.checkpoint_formats import read_rest, say_which_accelerator
from regimen.training.tensors import internalise


def export(run: Path, to: Path, *, merge: bool = True) -> Path:
    """Write a Hugging Face model and tokenizer, `rows.parquet` and `mixture.json` of run folder `run` to folder `to`.

    merge: put the adapters of a run with `model.lora` into its model; false: write them alone, for peft.
    rows.parquet: id, domain, documents (ids of those the row holds), kept (may be drawn), served (times).
    Raises ConfigError where the run is not finished, its data changed, or `to` exists.
    """
    settings, summary = read_run(run)
    if to.exists():
        raise ConfigError("the folder to export to exists", got=f"to={to}", do="name a new folder")
    if not merge:
        _refuse_no_adapter(settings["model"])
    pool = make_pool(settings, progress=False)
    if fingerprints(settings, pool)["pool"] != summary["fingerprints"]["pool"]:
        raise ConfigError("the run's data changed since", got=run, do="bring the data back, then export again")
    path = checkpoints(run)[-1]
    temporary = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _export_model(settings["model"], pool, evaluated_weights(path), temporary, merge=merge)
        _export_rows(settings, pool, read_rest(path), run, temporary)
        write_json(temporary / "mixture.json", summary["mixture"])
        temporary.replace(to)
    except OSError as error:
        raise RunError(
            f"cannot write {to}", got=error.strerror or error, do="free some space, or name another folder: to=DIR"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return to


def _refuse_no_adapter(model: dict[str, Any]) -> None:
    """An adapter alone is of use only beside a model that others can load."""
    if lora_of(model) is None:
        what, got = "the run has no adapters to write alone", "merge=false, and model.lora.rank=null in the run"
    elif not model["pretrained"]:
        what, got = "the model that the adapters belong to is nowhere but in this run", "model.pretrained=false"
    else:
        return
    raise ConfigError(what, got=got, do="leave merge=false out")


def _export_model(
    model_settings: dict[str, Any], pool: Pool, weights: dict[str, Any], to: Path, *, merge: bool
) -> None:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    say_which_accelerator()  # transformers imports deepspeed where it is installed
    model, lora = base_model(model_settings, pool), lora_of(model_settings)
    if lora is None:
        model.load_state_dict(weights)
        model.config.use_cache = True
        model.save_pretrained(to)
    else:
        export_adapted(model, lora, weights, to, base=None if merge else str(model_settings["path"]))
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
