"""`regimen prepare dry_run=true`: what a pool, and work on it, will take. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.tree import Tree

from regimen.core.errors import ConfigError
from regimen.core.footprint import Footprint
from regimen.core.signal import Signal
from regimen.core.strategy import Selector
from regimen.data.forecast import Forecast, forecast
from regimen.data.sampling import Sample, take_sample
from regimen.data.settings import DatasetSettings, parse
from regimen.runs.estimate import duration, flops_per_second, gigabytes
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.models import make_model
from regimen.runs.strategies import instantiate, make_strategies
from regimen.training.cost import forward_flops


@dataclass(frozen=True)
class _Shape:
    """What a model must know of a pool."""

    seq_len: int
    vocab_size: int
    eos_id: int
    pad_id: int


def dry_run(settings: Mapping[str, Any]) -> None:
    """Print the rows, bytes, memory and hours of preparing the dataset, from a sample of it or from stated sizes.

    Raises ConfigError where neither the source nor the user says how much there is.
    """
    dataset, wanted = parse(settings["dataset"]), settings["forecast"]
    given = {key: wanted[key] for key in ("rows", "documents", "document_tokens")}
    if given["rows"] is not None and given["documents"] is not None:
        raise ConfigError(
            "rows and documents follow from each other",
            got=f"forecast.rows={given['rows']} forecast.documents={given['documents']}",
            do="drop one of them",
        )
    root = Path(settings["paths"]["pools"]).expanduser()
    sample = take_sample(dataset, root, megabytes=wanted["sample_mb"])
    shards = settings["shard"]["count"]
    found = forecast(sample, dataset, shards=shards, **given)
    tree = Tree(f"data {dataset.name}, nothing is written: {_of_sample(sample)}")
    _add_sizes(tree, dataset, sample, found)
    _add_work(tree, dataset, sample, found, shards)
    _add_memory(tree, sample, found)
    _add_scores(tree, settings, dataset, sample, found)
    Console(width=120).print(tree)


def _of_sample(sample: Sample) -> str:
    size = f"{sample.total('documents'):,.0f} documents, {gigabytes(sample.total('bytes'))} of text"
    part = "all of the source" if sample.whole else "a sample"
    lost = f"; {sample.duplicates:,} duplicates and {sample.skipped:,} bad records left out"
    return f"from {part}, {size}{lost}"


def _add_sizes(tree: Tree, dataset: DatasetSettings, sample: Sample, found: Forecast) -> None:
    mean = found.tokens / found.documents
    of = f"{found.bytes / found.documents:,.0f} bytes and {mean:,.0f} tokens on average"
    tree.add(f"documents {found.documents:,.0f}, {of}; tokens {found.tokens:,.0f}")
    length = f"up to {dataset.seq_len} tokens" if sample.examples else f"{dataset.seq_len} target tokens"
    tree.add(f"training rows {found.rows:,.0f} of {length}, {found.row_tokens:,.0f} tokens in all")
    total = found.row_bytes + found.table_bytes
    disk = tree.add(f"disk {gigabytes(total)} for the pool")
    disk.add(f"rows {gigabytes(found.row_bytes)}, document table {gigabytes(found.table_bytes)}")
    disk.add(f"beside it, until it is finished: texts {gigabytes(found.text_bytes)}")


def _add_work(tree: Tree, dataset: DatasetSettings, sample: Sample, found: Forecast, shards: int) -> None:
    each, last = found.read_seconds + found.encode_seconds, found.tokenizer_seconds + found.overlap_seconds
    many = f"{shards} shards by {dataset.shard_by}, {duration(each)} each" if shards > 1 else duration(each)
    work = tree.add(f"time on machines as this one ({os.cpu_count()} cores): {many}, and {duration(last)} by one alone")
    read, encoded = (f"{sample.total('bytes') / sample.seconds[k] / 1e6:.1f} MB/s" for k in ("read", "encode"))
    work.add(
        f"reading {duration(found.read_seconds)} ({read}), tokenizing {duration(found.encode_seconds)} ({encoded})"
    )
    trained = f"the tokenizer {duration(found.tokenizer_seconds)}"
    work.add(f"alone: {trained}, n-grams of the overlap report {duration(found.overlap_seconds)} (dataset.overlap.n)")
    work.add(f"memory of a shard while it reads {gigabytes(found.shard_memory)}, to find duplicates and to split")
    if shards > 1 and dataset.shard_by == "content":
        work.add("by content every shard reads the whole source; dataset.shard_by=file reads a part in each")


def _add_memory(tree: Tree, sample: Sample, found: Forecast) -> None:
    rows = round(found.rows)
    plain = Footprint(rows=rows, ragged=sample.examples, examples=sample.examples)
    node = tree.add(f"memory of the rows' index and order in each rank of a training: {gigabytes(plain.total)}")
    for name, more in (("with an order", {"ordered": True}), ("with a selector that keeps half", {"kept": 0.5})):
        node.add(f"{name} {gigabytes(replace(plain, **more).total)}")


def _add_scores(
    tree: Tree, settings: Mapping[str, Any], dataset: DatasetSettings, sample: Sample, found: Forecast
) -> None:
    """What `regimen score` with the same settings costs, where there is something to score by."""
    signals, shards = _signals(settings), settings["shard"]["count"]
    if not signals:
        return
    shape = _Shape(dataset.seq_len, sample.vocab_size, sample.eos_id, sample.pad_id)
    with torch.device("meta"):
        model = make_model({**settings["model"], "compile": False}, shape)  # type: ignore[arg-type]
    inputs = found.row_tokens - found.rows
    passes = sum(signal.passes() for signal in signals)
    flops = passes * inputs * forward_flops(model, round(inputs / found.rows))
    each = flops / flops_per_second() / shards
    names = ", ".join(type(signal).__name__ for signal in signals)
    part = f"{shards} shards, {duration(each)} each" if shards > 1 else duration(each)
    tree.add(
        f"score by {names}: {flops:.3e} FLOPs, {part} on one device as here (model={settings['choices']['model']})"
    )


def _signals(settings: Mapping[str, Any]) -> list[Signal]:
    """The signals that `score` would measure: of score.by, or of the method's selector."""
    by = settings["score"]["by"]
    if by is not None:
        made = instantiate("score.by", by) if isinstance(by, Mapping) else by
        if not isinstance(made, Signal):
            raise ConfigError("score.by must be a signal of rows", got=made, allowed="e.g. '${signal.loss}'")
        return [made]
    placed = make_strategies(resolve(settings["strategies"], rehearsed(("a",))))
    return [signal for p in placed if isinstance(p.strategy, Selector) for signal in p.strategy.needs()]
