"""The settings of a dataset, checked. They come as the plain mapping of a `conf/dataset/*.yaml`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regimen.core.errors import ConfigError, closest

FILE_SOURCES = ("jsonl", "parquet", "text")
SOURCES = ("local", *FILE_SOURCES, "hub")


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
class DatasetSettings:
    """Everything that `prepare` and the loader read of a dataset. Defaults are those of `conf/dataset/base.yaml`.

    source: one of SOURCES. path, domain, domain_field, text_field, id_field, separator: of file sources.
    repo, revision, split, config, configs, streaming: of `hub`. domains: raw domain name -> name in the pool.
    seq_len: target tokens of a packed row. deduplicate: drop exact duplicates.
    shard_by: `content` sends equal documents to one shard, `file` reads each file in one shard.
    max_epochs_per_domain, document_mask: read by training, no part of the pool.
    """

    source: str
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
        object.__setattr__(self, "configs", dict(self.configs or {}))
        object.__setattr__(self, "domains", dict(self.domains or {}))
        object.__setattr__(self, "name", self.name or self.source)


_NESTED = {"tokenizer": TokenizerSettings, "validation": ValidationSettings, "overlap": OverlapSettings}


def parse(dataset: Mapping[str, Any]) -> DatasetSettings:
    """Settings of a plain mapping. Raises ConfigError for an unknown key, a missing value or one out of range."""
    values = dict(dataset)
    if "source" not in values:
        raise ConfigError("the dataset does not say where it comes from", allowed=", ".join(SOURCES), do="add `source`")
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
