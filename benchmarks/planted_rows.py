"""The rows of `selection.py`: examples of tasks, passages of text asked and answered, and whole passages."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

Record = dict[str, Any]

TASKS, DOMAINS = ("commonsense", "gsm8k", "mbpp", "medquad"), ("books", "dialogue", "latex", "law")
KINDS = (*TASKS, *DOMAINS)
TEXT = (*DOMAINS, "code", "medical", "stackexchange", "tinyshakespeare", "web", "wikipedia")
DOCUMENTS = (*DOMAINS, "code", "medical", "tinyshakespeare", "wikipedia")
ASKED, ANSWERED = 100, 250  # characters of a passage


def drawn(folder: Path, kind: str, split: str, count: int, *, seed: int, part: int | None) -> list[Record]:
    """Examples of a kind, from every second record (part 0 or 1) or from all."""
    records = read(folder, kind, split)
    records = records if part is None else records[part::2]
    rng = random.Random(f"{kind}-{split}-{seed}")
    found = [r for r in records if kind in TASKS or len(r["text"]) > ASKED + ANSWERED]
    return [example(record, kind, rng) for record in rng.sample(found, count)]


def example(record: Record, kind: str, rng: random.Random) -> Record:
    """A record of a task, or a passage from anywhere in a text with what comes after it."""
    if kind in TASKS:
        return {**record, "task": kind}
    start = rng.randrange(len(record["text"]) - ASKED - ANSWERED)
    middle, end = start + ASKED, start + ASKED + ANSWERED
    asked, answered = record["text"][start:middle], record["text"][middle:end]
    return {"id": record["id"], "instruction": asked, "input": "", "output": answered, "task": kind}


def read(folder: Path, name: str, split: str) -> list[Record]:
    with gzip.open(folder / f"{name}.{split}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def write(groups: list[list[Record]], to: Path) -> Path:
    to.write_text("".join(json.dumps(record) + "\n" for group in groups for record in group))
    return to


def passages(folder: Path, kind: str, split: str, count: int, *, long: int, seed: int) -> list[Record]:
    """Passages of `long` characters that do not overlap: of as many documents, or of all text if it has too few."""
    texts = [record["text"] for record in read(folder, kind, split)]
    rng = random.Random(f"{kind}-{split}-{seed}-long")
    enough = [text for text in texts if len(text) > long]
    if len(enough) >= count:
        starts = [(text, rng.randrange(len(text) - long)) for text in rng.sample(enough, count)]
    else:
        whole = "\n".join(texts)
        starts = [(whole, start) for start in rng.sample(range(0, len(whole) - long, long), count)]
    found = [text[start : start + long] for text, start in starts]
    return [{"id": f"{kind}-{split}-{n}", "text": text, "task": kind} for n, text in enumerate(found)]
