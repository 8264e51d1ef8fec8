"""The target set of a pool of examples: a few per subtask, never in a row of the training or validation split.

Which examples these are is decided by content hashes alone, as the split is: every shard takes the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from regimen.core.errors import ConfigError, DataError, closest
from regimen.data.fingerprint import seeded_key, text_digest
from regimen.data.settings import DatasetSettings, TargetSettings
from regimen.data.sources.records import BadRecords, Record, Source
from regimen.data.tables import DOCUMENT_TEXTS, TableWriter, file_name

FOLDER = "target"  # of the texts and rows of a target set that comes from files


def rank(content: str, settings: TargetSettings) -> int:
    """A number by which examples and documents are taken, lowest first, from a content hash."""
    return seeded_key(content, FOLDER, settings.seed)


class Candidates:
    """Examples of the domains that a target set is held out of."""

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings.target
        self._found: dict[str, list[tuple[int, str, int]]] = defaultdict(list)  # (rank, content, split key)

    def add(self, record: Record, content: str, key: int) -> None:
        """Offers an example with its content hash and split key."""
        if record.domain in self.settings.domains:
            self._found[record.domain].append((rank(content, self.settings), content, key))

    def close(self, folder: Path, thresholds: Mapping[str, int]) -> dict[str, Any]:
        """`held_out`: by content hash, the subtask of each held-out example. Their texts stay where they are.

        Training examples alone, validation stays as it is. thresholds: highest validation key by domain. Raises
        ConfigError for an unknown domain, DataError for one with too few examples.
        """
        check_domains(self.settings, thresholds)
        held: dict[str, str] = {}
        wanted = self.settings.rows_per_subtask
        for domain in self.settings.domains:
            training = sorted(row for row in self._found[domain] if row[2] > thresholds[domain])
            if wanted is None or len(training) <= wanted:
                raise DataError(
                    f"domain {domain!r} has too few training examples to hold a target set out of",
                    got=f"dataset.target.rows_per_subtask={wanted}, {len(training)} training examples",
                    do="lower dataset.target.rows_per_subtask, or name other domains in dataset.target.from",
                )
            held |= {content: domain for _, content, _ in training[:wanted]}
        return {"held_out": held}


def check_domains(settings: TargetSettings, known: Collection[str]) -> None:
    """Raises ConfigError for a domain to hold a target set out of that the dataset lacks."""
    for domain in settings.domains:
        if domain not in known:
            raise ConfigError(
                f"the target set names a domain that is not there{closest(domain, known)}",
                got=f"dataset.target.from={list(settings.domains)}",
                allowed=", ".join(sorted(known)),
            )


def read_targets(source: Source, settings: DatasetSettings, folder: Path) -> dict[str, Any]:
    """Writes the texts of a target set from files to `folder`.

    Returns `held_out`, the subtask of each example by content hash. Raises DataError if there is none.
    """
    bad = BadRecords(settings.on_bad_record)
    found: dict[str, dict[str, Record]] = defaultdict(dict)  # subtask -> content -> record
    owner: dict[str, str] = {}
    for part in source.parts():
        for record in source.read(part, bad):
            domain, content = settings.domains.get(record.domain, record.domain), text_digest(record.text)
            if owner.setdefault(content, domain) == domain:
                found[domain][content] = record
    held: dict[str, str] = {}
    for domain, records in sorted(found.items()):
        chosen = sorted(records, key=lambda content: rank(content, settings.target))
        chosen = chosen[: settings.target.rows_per_subtask]
        writer = TableWriter(folder / FOLDER / f"{file_name(domain)}.arrow", DOCUMENT_TEXTS)
        columns = {
            "id": [records[content].id or content for content in chosen],
            "text": [records[content].text for content in chosen],
            "hash": chosen,
            "key": [0] * len(chosen),
        }
        writer.write(columns)
        writer.close()
        held |= dict.fromkeys(chosen, domain)
    if not held:
        raise DataError("the target set has no examples", got=f"dataset.target.path={settings.target.path}")
    return {"held_out": held}
