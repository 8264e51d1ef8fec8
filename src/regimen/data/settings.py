"""The settings of a dataset, checked. They come as the plain mapping of a `conf/dataset/*.yaml`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regimen.core.errors import ConfigError, closest

FILE_SOURCES = ("jsonl", "parquet", "text")
SOURCES = ("local", "local_sft", *FILE_SOURCES, "hub")
FORMATS = ("text", "sft")
ROLES = ("user", "assistant", "system")


def _refuse(name: str, got: object, allowed: str) -> None:
    raise ConfigError(f"{name} is out of range or of the wrong type", got=repr(got), allowed=allowed)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name}{closest(value, known)}", got=value, allowed=", ".join(known))


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """kind: `bpe` trained on the pool, `bytes`, or `hf` loaded from `path`.

    vocab_size: tokens of a trained vocabulary, specials included.
    train_mb: text that training reads, in 10^6 bytes.
    path, revision: folder or hub name of a ready tokenizer.
    """

    kind: str = "bpe"
    vocab_size: int = 4096
    train_mb: float = 32
    path: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        _one_of("dataset.tokenizer.kind", self.kind, ("bpe", "bytes", "hf"))
        if self.kind == "bpe" and self.vocab_size < 258:
            _refuse("dataset.tokenizer.vocab_size", self.vocab_size, "258 or more (256 bytes and 2 special tokens)")
        if self.train_mb <= 0:
            _refuse("dataset.tokenizer.train_mb", self.train_mb, "a number above 0")
        if self.kind == "hf" and not self.path:
            raise ConfigError(
                "dataset.tokenizer.kind=hf needs a tokenizer",
                do="type dataset.tokenizer.path=gpt2, or a folder that holds tokenizer.json",
            )


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """fraction: of each domain's bytes held out, in whole documents. max_rows: per domain. seed: of the split."""

    fraction: float = 0.02
    max_rows: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            _refuse("dataset.validation.fraction", self.fraction, "a number between 0 and 1")
        if self.max_rows < 1:
            _refuse("dataset.validation.max_rows", self.max_rows, "1 or more")


@dataclass(frozen=True, kw_only=True)
class OverlapSettings:
    """n: tokens of an n-gram, 0 turns the report off; against: further evaluation texts to look for."""

    n: int = 13
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "against", tuple(self.against or ()))
        if self.n < 0:
            _refuse("dataset.overlap.n", self.n, "0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """Where a record of `format: sft` has its conversation, and how that becomes a prompt.

    template: `alpaca` (headings in plain text) or `chat` (the tokenizer's own).
    instruction_field, input_field, output_field: of records with one answer.
    messages_field: of records with turns, each with role_field and content_field; null: one answer.
    roles: name in the records -> user, assistant or system.
    """

    template: str = "alpaca"
    instruction_field: str = "instruction"
    input_field: str | None = "input"
    output_field: str = "output"
    messages_field: str | None = None
    role_field: str = "role"
    content_field: str = "content"
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("dataset.sft.template", self.template, ("alpaca", "chat"))
        object.__setattr__(self, "roles", dict(self.roles or {}))
        for role in self.roles.values():
            _one_of("role in dataset.sft.roles", role, ROLES)

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of a record that the conversation is in, the one that every record must have first."""
        if self.messages_field:
            return (self.messages_field,)
        return tuple(f for f in (self.output_field, self.instruction_field, self.input_field) if f)


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """A little of what the model is wanted for: of files (`path`), or training text or examples of domains (`from`).

    rows_per_subtask: at most so many per domain of the target set, null: all of a file; examples whose prompt fills a
    row are left out. seed: of the choice.
    """

    path: str | None = None
    rows_per_subtask: int | None = 8
    seed: int = 0
    domains: tuple[str, ...] = ()  # `from`, which Python reserves

    def __post_init__(self) -> None:
        names = [self.domains] if isinstance(self.domains, str) else list(self.domains or ())
        object.__setattr__(self, "domains", tuple(sorted(set(names))))
        if self.rows_per_subtask is not None and self.rows_per_subtask < 1:
            _refuse("dataset.target.rows_per_subtask", self.rows_per_subtask, "1 or more, or null for all of a file")
        if self.path and self.domains:
            raise ConfigError(
                "a target set comes from a file or from domains, not from both",
                got=f"dataset.target.path={self.path} dataset.target.from={names}",
                do="drop one of them",
            )
        if self.domains and self.rows_per_subtask is None:
            _refuse("dataset.target.rows_per_subtask", None, "1 or more, where dataset.target.from holds rows out")

    @property
    def wanted(self) -> bool:
        """Whether there is a target set."""
        return bool(self.path or self.domains)


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Everything that `prepare` and the loader read of a dataset. Defaults are those of `conf/dataset/base.yaml`.

    source: one of SOURCES. path, domain, domain_field, text_field, id_field, separator: of file sources.
    repo, revision, split, config, configs, streaming: of `hub`. domains: raw domain name -> name in the pool.
    seq_len: target tokens of a packed row. deduplicate: drop exact duplicates.
    shard_by: `content` sends equal documents to one shard, `file` reads each file in one shard.
    max_epochs_per_domain, document_mask: read by training, no part of the pool.
    format: `text` is packed, `sft` gives one row per example, prompts left out of the loss.
    """

    source: str
    format: str = "text"
    sft: SftSettings = SftSettings()
    target: TargetSettings = TargetSettings()
    name: str = ""
    path: str | None = None
    domain: str | None = None
    domain_field: str | None = None
    text_field: str = "text"
    id_field: str | None = "id"
    separator: str | None = None
    repo: str | None = None
    revision: str | None = None
    split: str = "train"
    config: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    streaming: bool = True
    domains: Mapping[str, str] = field(default_factory=dict)
    on_bad_record: str = "fail"
    max_mb_per_domain: float = 3
    deduplicate: bool = True
    seq_len: int = 256
    tokenizer: TokenizerSettings = TokenizerSettings()
    validation: ValidationSettings = ValidationSettings()
    overlap: OverlapSettings = OverlapSettings()
    shard_by: str = "content"
    max_epochs_per_domain: float | None = 4
    document_mask: bool = False

    def __post_init__(self) -> None:
        _one_of("dataset.source", self.source, SOURCES)
        _one_of("dataset.format", self.format, FORMATS)
        _one_of("on_bad_record", self.on_bad_record, ("fail", "skip"))
        _one_of("dataset.shard_by", self.shard_by, ("content", "file"))
        if self.seq_len < 1:
            _refuse("dataset.seq_len", self.seq_len, "1 or more")
        if self.max_mb_per_domain <= 0:
            _refuse("dataset.max_mb_per_domain", self.max_mb_per_domain, "a number above 0")
        if self.source in FILE_SOURCES and not self.path:
            raise ConfigError(
                f"dataset={self.source} needs to know where the text is",
                do="type dataset.path=FILE, a folder, a glob in quotes, or a URL such as s3://bucket/folder",
            )
        if self.source == "hub" and not self.repo:
            raise ConfigError("dataset=hub needs a repository", do="type dataset.repo=OWNER/NAME")
        self._check_format()
        object.__setattr__(self, "configs", dict(self.configs or {}))
        object.__setattr__(self, "domains", dict(self.domains or {}))
        object.__setattr__(self, "name", self.name or self.source)

    def _check_format(self) -> None:
        known = {"local_sft": ("sft",), "local": ("text",), "text": ("text",)}.get(self.source, FORMATS)
        if self.format not in known:
            raise ConfigError(
                "this source has no such rows",
                got=f"dataset.source={self.source} dataset.format={self.format}",
                allowed=f"dataset.format={' or '.join(known)}",
                do="choose dataset=local_sft, or dataset=sft_files dataset.path=FILE",
            )
        if not self.target.wanted:
            return
        for wrong, got, do in (
            (not self.deduplicate, "dataset.deduplicate=false", "type dataset.deduplicate=true"),
            (self.shard_by != "content", f"dataset.shard_by={self.shard_by}", "type dataset.shard_by=content"),
        ):
            if wrong:
                raise ConfigError("this dataset cannot hold a target set apart", got=got, do=do)


_NESTED = {
    "tokenizer": TokenizerSettings,
    "validation": ValidationSettings,
    "overlap": OverlapSettings,
    "sft": SftSettings,
    "target": TargetSettings,
}


def parse(dataset: Mapping[str, Any]) -> DatasetSettings:
    """Settings of a plain mapping. Raises ConfigError for an unknown key, a missing value or one out of range."""
    values = dict(dataset)
    if "source" not in values:
        raise ConfigError("the dataset does not say where it comes from", allowed=", ".join(SOURCES), do="add `source`")
    if isinstance(target := values.get("target"), Mapping):
        values["target"] = {"domains" if key == "from" else key: value for key, value in target.items()}
    for key, kind in _NESTED.items():
        values[key] = _build(kind, values.get(key) or {}, f"dataset.{key}.")
    return _build(DatasetSettings, values, "dataset.")


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(
                f"unknown setting {prefix}{key}{closest(key, known)}", got=f"{key}={value}", allowed=names
            )
    given = {key: None if value == "???" else value for key, value in values.items()}
    for key, value in given.items():
        given[key] = _typed(prefix + key, value, known[key].type)
    return kind(**given)


def _typed(name: str, value: Any, annotation: str) -> Any:
    """`value` as the annotated scalar; mappings and settings pass."""
    wanted = annotation.removesuffix(" | None")
    if value is None and annotation.endswith(" | None"):
        return None
    if wanted == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        _refuse(name, value, "a whole number")
    if wanted == "float" and (isinstance(value, bool) or not isinstance(value, int | float)):
        _refuse(name, value, "a number")
    if wanted == "bool" and not isinstance(value, bool):
        _refuse(name, value, "true or false")
    if wanted == "str":
        return "" if value is None else str(value)
    return value
