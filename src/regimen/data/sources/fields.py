"""From one raw record, a mapping of fields, to a Record."""

from __future__ import annotations

from collections.abc import Mapping

from regimen.data.settings import DatasetSettings
from regimen.data.sources.conversations import conversation_text
from regimen.data.sources.records import BadRecords, Record, field_of, usable_text


def record_of(
    raw: object, settings: DatasetSettings, bad: BadRecords, *, domain: str | None, file: str, line: int
) -> Record | None:
    """A Record, or None after reporting what is wrong. `domain` is that of the file, where no field names it."""
    if not isinstance(raw, Mapping):
        bad.report(
            "a record must be an object with fields",
            file=file,
            line=line,
            got=f"{type(raw).__name__} {str(raw)[:60]}",
            allowed='one object per line, such as {"text": "..."}',
        )
        return None
    fields = sorted(map(str, raw))
    if settings.format == "sft":
        text = conversation_text(raw, settings.sft, bad, file=file, line=line)
    else:
        value = field_of(raw, settings.text_field)
        text = usable_text(value, file=file, line=line, field=settings.text_field, fields=fields, bad=bad)
    if text is None:
        return None
    if settings.domain_field:
        value = field_of(raw, settings.domain_field)
        if value is None or not str(value).strip():
            bad.report(
                f"no domain: field {settings.domain_field!r} is missing or empty",
                file=file,
                line=line,
                got=f"fields {fields}",
                do="name the field with dataset.domain_field=..., or type dataset.domain_field=null "
                "dataset.domain=NAME for one domain",
            )
            return None
        domain = str(value)
    assert domain is not None
    id_ = field_of(raw, settings.id_field) if settings.id_field else None
    return Record(domain, None if id_ is None else str(id_), text, file, line)
