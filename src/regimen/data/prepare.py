"""From text to a pool: read, train a tokenizer, encode and pack, merge. Each stage is skipped where it is finished.

Heavy libraries are imported inside functions, so that finding a finished pool is fast.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from regimen.core.errors import ConfigError
from regimen.data.fingerprint import write_atomically
from regimen.data.job import Job
from regimen.data.locking import locked
from regimen.data.manifest import MANIFEST
from regimen.data.progress import Progress
from regimen.data.settings import FILE_SOURCES, DatasetSettings, TargetSettings, parse
from regimen.data.sources.factory import open_source
from regimen.data.sources.records import Source
from regimen.data.staging import read_counts, whole_folder, write_counts

if TYPE_CHECKING:
    from regimen.data.encoding import Encoder


def prepare(
    dataset: Mapping[str, Any],
    *,
    root: Path,
    shard_index: int = 0,
    shard_count: int = 1,
    progress: bool = False,
    workers: int | None = None,
) -> Path | None:
    """Makes the pool of `dataset` under `root`, or finds it. Returns its folder, None while other shards are missing.

    dataset: the mapping of a `conf/dataset/*.yaml`. workers: threads that encode, None for all cores; it takes effect
    before the first encoding of a process only. May be killed at any point and called again.
    Raises ConfigError for settings and DataError for text that cannot be used.
    """
    if not 0 <= shard_index < shard_count:
        raise ConfigError(
            "shard.index counts from 0 to shard.count - 1", got=f"shard.index={shard_index} shard.count={shard_count}"
        )
    if workers is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(workers))
    job = _job(dataset, Path(root), shard_index, shard_count)
    found = _find(job)
    if found is None:
        with Progress(shown=progress) as shown, locked(job.lock(f"shard-{shard_index:05d}")):
            if not job.done(shard_index).exists() and not job.manifest.exists():
                _make_shard(job, shown)
        with locked(job.lock("merge")):
            if not job.manifest.exists():
                if not all(job.done(k).exists() for k in range(shard_count)):
                    return None
                _merge(job)
        found = job.folder
    shutil.rmtree(found / "texts", ignore_errors=True)  # also what a killed process left
    _refresh_overlap(found, job)
    return found


def locate(dataset: Mapping[str, Any], *, root: Path) -> Path | None:
    """The finished pool that `prepare` would return, or None. Pools of any shard count hold the same documents."""
    return _find(_job(dataset, Path(root), 0, 1))


def _job(dataset: Mapping[str, Any], root: Path, shard_index: int, shard_count: int) -> Job:
    settings = parse(dataset)
    return Job(settings, open_source(settings, root), root, shard_index, shard_count, _target(settings, root))


def _target(settings: DatasetSettings, root: Path) -> Source | None:
    """The files of the target set, read as the dataset's are. Raises ConfigError for a pool."""
    if not settings.target.path:
        return None
    if (Path(settings.target.path) / MANIFEST).is_file():
        raise ConfigError(
            "a target set is made of text, with the tokenizer of this pool, and this folder is a prepared pool",
            got=f"dataset.target.path={settings.target.path}",
            do="name the files that it was made of",
        )
    source = settings.source if settings.source in FILE_SOURCES else "jsonl"
    alike = dataclasses.replace(settings, source=source, path=settings.target.path, target=TargetSettings())
    return open_source(alike, root)


def _find(job: Job) -> Path | None:
    if job.manifest.exists():
        return job.folder
    if job.shard_count > 1:
        return None
    found = []
    for path in sorted(job.root.glob(f"*/{MANIFEST}")):
        manifest = json.loads(path.read_text())
        if manifest.get("base") == job.base and manifest["name"] == job.settings.name:
            found.append((manifest["shard_count"], path.parent))
    return min(found)[1] if found else None


def _make_shard(job: Job, shown: Progress) -> None:
    """Stages 1 to 3 of one shard."""
    from regimen.data.tables import file_name
    from regimen.data.targets import FOLDER

    if not job.texts.exists():
        _read(job, shown)
    read = read_counts(job.texts)
    how = _encoding(job, read)
    advance = shown.stage("encode", total=sum(read["bytes"].values()))
    for domain in read["domains"]:
        target = job.rows(job.shard_index, file_name(domain))
        if target.exists():
            advance(read["bytes"][domain])
            continue
        with whole_folder(target) as rows:
            texts = job.texts / f"{file_name(domain)}.arrow"
            threshold = read["thresholds"][domain]
            write_counts(rows, how.domain(texts, rows, domain=domain, threshold=threshold, advance=advance))
    subtasks = sorted(set(how.held_out.values()))
    for domain in subtasks if job.own_target and job.shard_index == 0 else ():
        target = job.target_rows(file_name(domain))
        if target.exists():
            continue
        with whole_folder(target) as rows:
            write_counts(rows, how.subtask(job.texts / FOLDER / f"{file_name(domain)}.arrow", rows, domain=domain))
    done = {key: read[key] for key in ("domains", "duplicates", "skipped")}
    done["subtasks"] = subtasks
    found = how.encoder
    done["tokenizer"] = {"eos_id": found.eos_id, "pad_id": found.pad_id, "vocab_size": found.vocab_size}
    write_atomically(job.done(job.shard_index), json.dumps(done))


class _Encoding(NamedTuple):
    """The encoder of a shard, and the functions that encode one domain and one subtask with it.

    held_out: by content hash, the subtask of what is in the target set.
    """

    encoder: Encoder
    domain: Callable[..., dict[str, Any]]
    subtask: Callable[..., dict[str, Any]]
    held_out: dict[str, str]


def _encoding(job: Job, read: dict[str, Any]) -> _Encoding:
    import numpy as np

    from regimen.data.encoding import Encoder, encode_domain
    from regimen.data.examples import ExampleEncoder, encode_examples
    from regimen.data.text_targets import encode_target, hold_out
    from regimen.data.tokenizer import load

    folder, s = _tokenizer(job), job.settings
    tokenizer, token_bytes = load(folder), np.load(folder / "token_bytes.npy")
    shared: dict[str, Any] = {"max_validation_rows": s.validation.max_rows}
    if s.format == "sft":
        examples = ExampleEncoder(tokenizer, token_bytes, template=s.sft.template, seq_len=s.seq_len)
        encode = partial(encode_examples, encoder=examples, held_out=read["held_out"], **shared)
        subtask = partial(encode, threshold=-1, advance=lambda size: None)
        return _Encoding(examples.encoder, encode, subtask, read["held_out"])
    encoder = Encoder(tokenizer, token_bytes)
    held = hold_out(job.texts, read["candidates"], encoder, s)
    shared |= {"encoder": encoder, "seq_len": s.seq_len, "held_out": held, "copied": job.target is not None}
    subtask = partial(encode_target, encoder=encoder, settings=s)
    return _Encoding(encoder, partial(encode_domain, **shared), subtask, held)


def _read(job: Job, shown: Progress) -> None:
    """Stage 1."""
    from regimen.data.reading import Reader

    shard = {"shard_index": job.shard_index, "shard_count": job.shard_count}
    reader = Reader(job.source, job.settings, target=job.target, **shard)
    with whole_folder(job.texts) as texts:
        write_counts(texts, reader.write(texts, shown.stage("read", total=None)))


def _tokenizer(job: Job) -> Path:
    """Stage 2: the pool's tokenizer, from the cache or built. The shard that comes first builds it for all."""
    from regimen.data.reading import SAMPLE, Reader
    from regimen.data.tables import column
    from regimen.data.templates import plain_text
    from regimen.data.tokenizer import build, save

    own, cached = job.folder / "tokenizer", job.root / "tokenizers" / job.tokenizer_key[:16]
    cached.parent.mkdir(parents=True, exist_ok=True)
    with locked(cached.with_name(f"{cached.name}.lock")):
        if not cached.exists():
            if job.settings.shard_by == "content":
                texts = iter(column([job.texts / SAMPLE], "text").to_pylist())
            else:
                texts = Reader(job.source, job.settings, shard_index=0, shard_count=1).heads()
            if job.settings.format == "sft":
                texts = map(plain_text, texts)
            with whole_folder(cached) as folder:
                save(build(job.settings.tokenizer, texts), folder)
    with locked(job.lock("tokenizer")):
        if not own.exists():
            with whole_folder(own) as folder:
                shutil.copytree(cached, folder, dirs_exist_ok=True)
    return own


def _merge(job: Job) -> None:
    """Stage 4: the manifest, from what the shards counted."""
    from regimen.data.merging import manifest_of

    write_atomically(job.manifest, json.dumps(manifest_of(job), indent=1, sort_keys=True))


def _refresh_overlap(folder: Path, job: Job) -> None:
    """Measures the n-gram overlap where the manifest lacks it for the present settings."""
    from regimen.data.overlap import identity_of, report

    path = folder / MANIFEST
    wanted = identity_of(job.settings.overlap)
    if json.loads(path.read_text()).get("overlap", {}).get("settings") == wanted:
        return
    found = report(folder, job.settings.overlap)
    with locked(folder / "locks" / "merge.lock"):
        manifest = json.loads(path.read_text())
        manifest["overlap"] = {"settings": wanted, **found}
        write_atomically(path, json.dumps(manifest, indent=1, sort_keys=True))
