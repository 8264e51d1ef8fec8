"""The identity of a pool and the places of its files.

root/tokenizers/<fingerprint>/           a trained or loaded tokenizer, shared by pools
root/<name>-<fingerprint>/
    texts/00000/                         stage 1, one file per domain; removed when the pool is finished
    rows/00000/<domain>/                 stage 3: train.arrow, validation.arrow, documents.arrow, counts.json
    rows/target/<subtask>/               target.arrow and documents.arrow of a target set with files of its own
    tokenizer/                           stage 2, a copy, so that the folder can be moved
    manifest.json                        written last: a folder without it is not a pool
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regimen.data.fingerprint import digest
from regimen.data.manifest import FORMAT, MANIFEST
from regimen.data.settings import DatasetSettings, TokenizerSettings
from regimen.data.sources.records import Source

_SOURCE_FIELDS = {
    "local": ("max_mb_per_domain",),
    "local_sft": ("max_mb_per_domain",),
    "text": ("domain", "separator"),
    "jsonl": ("domain", "domain_field", "text_field", "id_field"),
    "parquet": ("domain", "domain_field", "text_field", "id_field"),
    "hub": ("domain", "domain_field", "text_field", "id_field"),
}


@dataclass(frozen=True)
class Job:
    """One pool to make, and which shard of it this process makes."""

    settings: DatasetSettings
    source: Source
    root: Path
    shard_index: int
    shard_count: int
    target: Source | None = None  # the files of a target set, if it comes from files

    @cached_property
    def base(self) -> str:
        """Fingerprint of what the pool holds, however many shards made it."""
        s = self.settings
        content = self._content | self._target_set
        return digest({"content": content, "seq_len": s.seq_len, "tokenizer": tokenizer_identity(s.tokenizer),
                       "max_rows": s.validation.max_rows})  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the pool, the order of its rows included."""
        return digest([self.base, self.shard_count])

    @cached_property
    def tokenizer_key(self) -> str:
        """Fingerprint of what determines the tokenizer."""
        identity = tokenizer_identity(self.settings.tokenizer)
        content = self._content if self.settings.tokenizer.kind == "bpe" else None
        chat = self._chat_template
        return digest([identity, content] if chat is None else [identity, content, chat])

    @cached_property
    def _content(self) -> dict[str, Any]:
        s = self.settings
        fields = {name: getattr(s, name) for name in _SOURCE_FIELDS[s.source]}
        return {
            "format": FORMAT,
            "source": [s.source, fields, self.source.identity()],
            "domains": dict(s.domains),
            "on_bad_record": s.on_bad_record if s.source != "local" else None,
            "deduplicate": s.deduplicate,
            "split": [s.validation.fraction, s.validation.seed],
            "shard_by": s.shard_by,
            **(self._examples if s.format == "sft" else {}),
        }

    @property
    def _examples(self) -> dict[str, Any]:
        """What determines the rows of examples, beyond what determines those of text."""
        s = self.settings
        found: dict[str, Any] = {"sft": dataclasses.asdict(s.sft), "chat_template": self._chat_template}
        return found | self._target_set

    @cached_property
    def _target_set(self) -> dict[str, Any]:
        """What determines the target set. A tokenizer of text does not depend on it: it is trained as without one."""
        s = self.settings
        if not s.target.wanted:
            return {}
        asked = dataclasses.asdict(s.target) | {"path": None}
        return {"target": [asked, None if self.target is None else self.target.identity()]}

    @cached_property
    def _chat_template(self) -> str | None:
        """Fingerprint of the template of a tokenizer's folder, which keeps it in a file of its own."""
        s = self.settings
        if s.format != "sft" or s.sft.template != "chat":
            return None
        file = Path(str(s.tokenizer.path)) / "chat_template.jinja"
        return digest(file.read_text()) if file.is_file() else None

    @property
    def folder(self) -> Path:
        return self.root / f"{self.settings.name}-{self.fingerprint[:12]}"

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    @property
    def texts(self) -> Path:
        return self.folder / "texts" / f"{self.shard_index:05d}"

    def rows(self, shard: int, file: str) -> Path:
        """The folder of one domain's rows in one shard."""
        return self.folder / "rows" / f"{shard:05d}" / file

    @property
    def own_target(self) -> bool:
        """Whether the target set has files of its own; examples held out of domains stay in those of their shard."""
        return self.settings.target.wanted and (self.target is not None or self.settings.format == "text")

    def target_rows(self, file: str) -> Path:
        """The folder of one subtask's rows, of a target set with files of its own."""
        return self.folder / "rows" / "target" / file

    def done(self, shard: int) -> Path:
        """The file that says that a shard is complete, and what it counted."""
        return self.folder / "rows" / f"{shard:05d}" / "shard.json"

    def lock(self, name: str) -> Path:
        """A lock file of the pool."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.lock"


def tokenizer_identity(settings: TokenizerSettings) -> Any:
    """What determines a tokenizer, its training text left out: for `hf` the files of a folder, or name and revision."""
    if settings.kind == "bpe":
        return ["bpe", settings.vocab_size, settings.train_mb]
    if settings.kind == "bytes":
        return ["bytes"]
    folder = Path(str(settings.path))
    if not folder.is_dir():
        return ["hf", settings.path, settings.revision]
    files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".model", ".txt"))
    return ["hf", [[f.name, digest(f.read_bytes().hex())] for f in files]]


def settings_record(settings: DatasetSettings) -> dict[str, Any]:
    """The settings as JSON-able values, for the manifest."""
    return dataclasses.asdict(settings)
