"""Stage 4: what the shards counted becomes the manifest. Row files stay where they are; the manifest lists them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from typing import Any

from regimen.core.errors import DataError
from regimen.data.encoding import SPLITS
from regimen.data.fingerprint import digest
from regimen.data.job import Job, settings_record
from regimen.data.manifest import FORMAT
from regimen.data.reading import single_document
from regimen.data.staging import read_counts
from regimen.data.tables import column, file_name


def manifest_of(job: Job) -> dict[str, Any]:
    """The manifest of a pool whose shards are all there. Raises DataError for a domain without rows in a split."""
    done = [json.loads(job.done(k).read_text()) for k in range(job.shard_count)]
    domains = sorted(set().union(*(d["domains"] for d in done)))
    for domain in sorted(set().union(*(d["duplicates"] for d in done)) - set(domains)):
        raise DataError(
            f"every document of domain {domain!r} is in another domain too, and exact duplicates are removed",
            do="leave the domain out, or type dataset.deduplicate=false",
        )
    files = _files(job, domains, [set(d["domains"]) for d in done])
    row_tokens = {split: _cut_rows(job, files, split) for split in SPLITS}
    _check_splits(domains, files, job)
    per_domain = {domain: _domain_counts(files, domain) for domain in domains}
    spelled = sum(f["counts"]["spelled_bytes"] for f in files) / sum(d["bytes"] for d in per_domain.values())
    if abs(spelled - 1) > 0.01:
        warnings.warn(f"token_bytes cover {spelled:.1%} of the text: bits per byte are off by as much", stacklevel=2)
    return {
        "format": FORMAT,
        "fingerprint": job.fingerprint,
        "base": job.base,
        "name": job.settings.name,
        "shard_count": job.shard_count,
        "seq_len": job.settings.seq_len,
        "domains": domains,
        "row_tokens": row_tokens,
        **({"format_of_rows": "sft", "template": job.settings.sft.template} if job.settings.format == "sft" else {}),
        **_target(job, files, done),
        "files": [_entry(f) for f in files],
        "counts": per_domain,
        "duplicates_removed": _duplicates(done, job),
        "duplicates_left": _duplicates_left(job, files) if job.settings.shard_by == "file" else 0,
        "skipped": dict(sum((Counter(d["skipped"]) for d in done[: _counted(job)]), Counter())),
        "tokenizer": {
            **done[0]["tokenizer"],
            "fingerprint": _tokenizer_fingerprint(job),
            "bytes_per_text_byte": spelled,
        },
        "settings": settings_record(job.settings),
    }


def _files(job: Job, domains: list[str], held: list[set[str]]) -> list[dict[str, Any]]:
    """One entry per (domain, shard), domain-major, documents numbered through."""
    files: list[dict[str, Any]] = []
    first = 0
    for domain in domains:
        for shard in range(job.shard_count):
            if domain not in held[shard]:
                continue
            folder = job.rows(shard, file_name(domain))
            counts = read_counts(folder)
            files.append(
                {
                    "path": folder.relative_to(job.folder).as_posix(),
                    "domain": domain,
                    "shard": shard,
                    "first_document": first,
                    "train_rows": counts["train"]["rows"],
                    "validation_rows": counts["validation"]["rows"],
                    "counts": counts,
                }
            )
            first += counts["documents"]
    return files


def _target(job: Job, files: list[dict[str, Any]], done: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of the target set, where there is one."""
    if not job.settings.target.wanted:
        return {}
    subtasks, packed = done[0]["subtasks"], job.settings.format == "text"
    held = [f for f in files if f["domain"] in subtasks]
    if job.own_target:
        held = _target_files(job, subtasks, first=sum(f["counts"]["documents"] for f in files))
    full = packed and not any(f["counts"]["target"]["short_row"] for f in held)
    target = {
        "own": job.own_target,
        "domains": subtasks,
        "files": [{**_entry(f), "target_rows": f["counts"]["target"]["rows"]} for f in held],
        "row_tokens": {"target": job.settings.seq_len + 1 if full else None},
        "tokenizer": done[0]["tokenizer"],
        "fingerprint": digest([job.fingerprint, "target"]),
        "removed": sum(f["counts"]["removed"] for f in files),
    }
    return {"target": target if packed else target | {"format_of_rows": "sft"}}


def _target_files(job: Job, subtasks: list[str], first: int) -> list[dict[str, Any]]:
    """One entry per subtask of a target set with files of its own, its documents numbered after those of the pool."""
    out = []
    for domain in subtasks:
        folder = job.target_rows(file_name(domain))
        counts = read_counts(folder)
        path = folder.relative_to(job.folder).as_posix()
        out.append({"path": path, "domain": domain, "first_document": first, "counts": counts})
        first += counts["documents"]
    return out


def _entry(file: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {key: value for key, value in file.items() if key != "counts"}


def _cut_rows(job: Job, files: list[dict[str, Any]], split: str) -> int | None:
    """Takes out short rows of domains that have full ones, and validation rows over the limit.

    Returns the tokens of a row where all rows have the same number.
    """
    full = {f["domain"] for f in files if f[f"{split}_rows"] and not f["counts"][split]["short_row"]}
    left = dict.fromkeys((f["domain"] for f in files), job.settings.validation.max_rows)
    for file in files:
        if file["domain"] in full and file["counts"][split]["short_row"]:
            file["counts"][split]["tokens_in_no_row"] += file["counts"][split]["short_row"]
            file["counts"][split]["short_row"] = file[f"{split}_rows"] = 0
        if split == "validation":
            file["validation_rows"] = min(file["validation_rows"], left[file["domain"]])
            left[file["domain"]] -= file["validation_rows"]
    packed = job.settings.format == "text"
    return job.settings.seq_len + 1 if packed and len(full) == len(left) else None


def _check_splits(domains: list[str], files: list[dict[str, Any]], job: Job) -> None:
    """Under `shard_by: file` hashes alone decide, so a small domain may have fallen on one side."""
    for domain in domains:
        own = [f for f in files if f["domain"] == domain]
        if sum(f["counts"]["documents"] for f in own) < 2:
            raise single_document(domain)
        for split in SPLITS:
            if not any(f[f"{split}_rows"] for f in own):
                raise DataError(
                    f"domain {domain!r} has no {split} rows",
                    got=f"shard_by={job.settings.shard_by}, {sum(f['counts']['documents'] for f in own)} documents",
                    do="type dataset.shard_by=content, or give the domain more documents",
                )


def _domain_counts(files: list[dict[str, Any]], domain: str) -> dict[str, Any]:
    own = [f for f in files if f["domain"] == domain]
    counts: dict[str, Any] = {"documents": sum(f["counts"]["documents"] for f in own)}
    for split in SPLITS:
        parts = [f["counts"][split] for f in own]
        counts[split] = {key: sum(p[key] for p in parts) for key in parts[0]}
        counts[split]["rows"] = sum(f[f"{split}_rows"] for f in own)
    counts["bytes"] = sum(counts[split]["bytes"] for split in SPLITS)
    return counts


def _counted(job: Job) -> int:
    """How many shards' reading counts to add up: by content every shard has read, and counted, everything."""
    return 1 if job.settings.shard_by == "content" else job.shard_count


def _duplicates(done: list[dict[str, Any]], job: Job) -> dict[str, int]:
    return dict(sum((Counter(d["duplicates"]) for d in done[: _counted(job)]), Counter()))


def _duplicates_left(job: Job, files: list[dict[str, Any]]) -> int:
    """Documents that another shard holds too: by file they are counted, not removed."""
    hashes = column([job.folder / f["path"] / "documents.arrow" for f in files], "hash")
    return len(hashes) - len(hashes.unique())


def _tokenizer_fingerprint(job: Job) -> str:
    return hashlib.sha256((job.folder / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
