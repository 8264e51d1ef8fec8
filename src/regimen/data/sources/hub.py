"""Documents of a Hugging Face dataset, streamed into `prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from regimen.core.errors import DataError
from regimen.data.settings import DatasetSettings
from regimen.data.sources.fields import record_of
from regimen.data.sources.records import BadRecords, Record


class Part(NamedTuple):
    """One configuration of the dataset, or one of its files (`piece` of `pieces`)."""

    domain: str | None
    config: str | None
    piece: int = 0
    pieces: int = 1


class HubSource:
    """One domain per configuration (`configs`), by a field (`domain_field`), or one in all (`domain`)."""

    def __init__(self, settings: DatasetSettings) -> None:
        self.settings = settings

    def identity(self) -> Any:
        """Repository, revision and what is taken of it; asks nothing of the network, so pin `revision`."""
        s = self.settings
        return [s.repo, s.revision, s.split, s.config, dict(s.configs)]

    def parts(self) -> list[Part]:
        s = self.settings
        default = s.domain or str(s.repo).rpartition("/")[2]
        whole = [Part(name, config) for name, config in s.configs.items()] or [Part(default, s.config)]
        if s.shard_by == "content" or not s.streaming:
            return whole
        pieces = [(part, self._load(part).num_shards) for part in whole]
        return [part._replace(piece=k, pieces=n) for part, n in pieces for k in range(n)]

    def read(self, part: Part, bad: BadRecords) -> Iterator[Record]:
        name = f"{self.settings.repo}/{part.config or self.settings.split}"
        with hub_errors(self.settings):
            rows = self._load(part)
            if part.pieces > 1:
                rows = rows.shard(num_shards=part.pieces, index=part.piece)
            for number, raw in enumerate(rows, 1):
                record = record_of(raw, self.settings, bad, domain=part.domain, file=name, line=number)
                if record is not None:
                    yield record

    def _load(self, part: Part) -> Any:
        from datasets import load_dataset

        s = self.settings
        with hub_errors(s, ValueError):
            return load_dataset(s.repo, part.config, split=s.split, revision=s.revision, streaming=s.streaming)


@contextmanager
def hub_errors(settings: DatasetSettings, *kinds: type[Exception]) -> Iterator[None]:
    """Turns what the hub's client raises (`kinds`, and OSError with its subclasses) into a DataError."""
    try:
        yield
    except (OSError, *kinds) as error:  # type: ignore[misc]
        raise DataError(
            "the dataset cannot be read from the Hugging Face hub",
            got=f"dataset.repo={settings.repo}: {type(error).__name__}: {str(error)[:200]}",
            do="check the name and the network (HF_HUB_OFFLINE, HF_TOKEN, proxies); on a machine without network, "
            "download it elsewhere with `hf download REPO --repo-type dataset --local-dir FOLDER` and type "
            "dataset=parquet or dataset=jsonl with dataset.path=FOLDER",
        ) from error
