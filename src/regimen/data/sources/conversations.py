"""From one raw record to a conversation, kept as text: a JSON list of turns, so that equal conversations hash alike.

A turn is [role, text], or ["user", instruction, input] where a record has both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from regimen.core.errors import closest
from regimen.data.settings import ROLES, SftSettings
from regimen.data.sources.records import BadRecords, encodes, field_of

_FIELDS = (
    "name the fields with dataset.sft.instruction_field=..., input_field, output_field, or messages_field for "
    "several turns, or skip such records by typing on_bad_record=skip"
)


class Unusable(Exception):
    """Why a record is no conversation."""

    def __init__(self, what: str, **details: Any) -> None:
        super().__init__(what)
        self.details = details


def conversation_text(
    raw: Mapping[str, Any], settings: SftSettings, bad: BadRecords, *, file: str, line: int
) -> str | None:
    """The conversation of a record as text, or None after reporting why it is none."""
    try:
        turns = _turns(raw, settings) if settings.messages_field else _one_answer(raw, settings)
        while turns and turns[-1][0] != "assistant":
            turns.pop()  # what nobody answers is no target
        if not turns:
            raise Unusable("no turn of the assistant, so nothing to learn", got=f"fields {sorted(map(str, raw))}")
    except Unusable as reason:
        bad.report(str(reason), file=file, line=line, **reason.details)
        return None
    return as_text(turns)


def as_text(turns: list[list[str]]) -> str:
    """The turns as one text."""
    return json.dumps(turns, ensure_ascii=False)


def _one_answer(raw: Mapping[str, Any], settings: SftSettings) -> list[list[str]]:
    instruction = _string(raw, settings.instruction_field)
    given = field_of(raw, settings.input_field) if settings.input_field else None
    more = "" if given is None else _string(raw, str(settings.input_field))
    if not instruction.strip() and not more.strip():
        raise Unusable(f"the instruction in {settings.instruction_field!r} is empty", do=_FIELDS)
    output = _string(raw, settings.output_field)
    if not output.strip():
        raise Unusable(f"the output in {settings.output_field!r} is empty", do=_FIELDS)
    user = ["user", instruction, more] if more.strip() else ["user", instruction]
    return [user, ["assistant", output]]


def _turns(raw: Mapping[str, Any], settings: SftSettings) -> list[list[str]]:
    name = str(settings.messages_field)
    messages = field_of(raw, name)
    if not isinstance(messages, list):
        raise Unusable(
            f"no list of turns: field {name!r} is missing or of another type",
            got=f"fields {sorted(map(str, raw))}",
            do=_FIELDS,
        )
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unusable(f"a turn in {name!r} must be an object", got=f"{type(message).__name__} {str(message)[:60]}")
        turn = [_role(message, settings), _string(message, settings.content_field)]
        if turn[0] == "assistant" and not turn[1].strip():
            raise Unusable(f"a turn of the assistant in {name!r} is empty", do=_FIELDS)
        turns.append(turn)
    return turns


def _role(message: Mapping[str, Any], settings: SftSettings) -> str:
    found = str(field_of(message, settings.role_field))
    role = settings.roles.get(found, found)
    if role not in ROLES:
        known = (*ROLES, *settings.roles)
        raise Unusable(
            f"unknown role{closest(found, known)}",
            got=f"{settings.role_field}={found}",
            allowed=", ".join(known),
            do=f"say which role it is by typing '+dataset.sft.roles.{found}=user', or name the field with "
            "dataset.sft.role_field=...",
        )
    return role


def _string(raw: Mapping[str, Any], name: str) -> str:
    value = field_of(raw, name)
    if value is None:
        raise Unusable(f"field {name!r} is missing or null", got=f"fields {sorted(map(str, raw))}", do=_FIELDS)
    if not isinstance(value, str):
        raise Unusable(
            f"field {name!r} must be a string", got=f"{type(value).__name__} {str(value)[:60]!r}", do=_FIELDS
        )
    if not encodes(value):
        raise Unusable(f"the text in {name!r} is not valid Unicode (a lone surrogate)")
    return value
