"""What every source yields, and what happens to a record that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from regimen.core.errors import DataError


class Record(NamedTuple):
    """One document as it was found. `id` is None where the source has none; `line` counts from 1, 0: a whole file."""

    domain: str
    id: str | None
    text: str
    file: str
    line: int


class BadRecords:
    """Refuses a bad record, or counts it per file and goes on.

    policy: `fail` or `skip`.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.skipped: Counter[str] = Counter()

    def report(self, what: str, *, file: str, line: int, **details: Any) -> None:
        """Raises DataError with file and line under `fail`; counts under `skip`."""
        if self.policy == "skip":
            self.skipped[file] += 1
            return
        where = f"{file}:{line}" if line else file
        details.setdefault("do", "correct the record, or leave such records out by typing on_bad_record=skip")
        raise DataError(f"{where}: {what}", **details)


class Source(Protocol):
    """Where documents come from."""

    def identity(self) -> Any:
        """JSON-able content of the source: equal if and only if the same documents come out. Fast."""
        ...

    def parts(self) -> list[Any]:
        """Independent pieces (files) in a fixed order."""
        ...

    def read(self, part: Any, bad: BadRecords) -> Iterator[Record]:
        """The records of one part, in a fixed order."""
        ...


def field_of(raw: Mapping[str, Any], name: str) -> Any:
    """The value of a field; `meta.set` is looked up as it stands, then as `set` inside `meta`. None where missing."""
    if name in raw:
        return raw[name]
    outer, _, inner = name.partition(".")
    inside = raw.get(outer)
    return field_of(inside, inner) if inner and isinstance(inside, Mapping) else None


def usable_text(value: object, *, file: str, line: int, field: str, fields: object, bad: BadRecords) -> str | None:
    """The text itself, or None after reporting why it is none."""
    if isinstance(value, str) and value.strip():
        if encodes(value):
            return value
        bad.report(f"the text in {field!r} is not valid Unicode (a lone surrogate)", file=file, line=line)
        return None
    if value is None:
        what = f"no text: field {field!r} is missing or null"
    elif isinstance(value, str):
        what = f"no text: field {field!r} is empty"
    else:
        what = f"field {field!r} must be a string"
    got = f"fields {fields}" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
    bad.report(
        what,
        file=file,
        line=line,
        got=got,
        do="name the field that holds the text with dataset.text_field=..., or skip such records by typing "
        "on_bad_record=skip",
    )
    return None


def encodes(text: str) -> bool:
    """Whether a text is valid Unicode, without lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
