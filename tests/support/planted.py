"""Real examples with a planted truth: copies of known rows, answers exchanged among rows; and whether scores tell.

Letters: g rows that should score high, b rows that should score low.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from regimen.data.pool import Pool

Record = dict[str, str]

# Questions about rare diseases that ask one of four things; answers begin with words that say which.
KINDS = ("what are the symptoms of ", "what are the treatments for ", "what causes ", "is ")
KINDS_FROM = "2_GARD_QA/"


def examples(folder: Path, task: str, split: str, *, seed: int, characters: int = 10**9) -> list[Record]:
    """Examples of a task that are no longer than `characters`, each answer once, in a seeded order."""
    with gzip.open(folder / f"{task}.{split}.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    short = [r for r in records if len(r["instruction"] + r["input"] + r["output"]) <= characters]
    found = list({r["output"]: {**r, "task": task} for r in short}.values())
    random.Random(seed).shuffle(found)
    return found


def kind_of(record: Mapping[str, str]) -> str | None:
    """What a medical question asks; None for one of no known kind."""
    asked = record["instruction"].lower()
    return next((kind for kind in KINDS if record["id"].startswith(KINDS_FROM) and asked.startswith(kind)), None)


def of_kinds(records: Sequence[Record], *, words: int) -> list[Record]:
    """The questions of `KINDS`, one of each in turn while there are any; of answers the first words."""
    by_kind: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kind = kind_of(record)
        if kind:
            by_kind[kind].append({**record, "output": " ".join(record["output"].split()[:words])})
    turns = range(max(map(len, by_kind.values())))
    return [group[i] for i in turns for group in by_kind.values() if i < len(group)]


def exchanged(records: Sequence[Record], *, seed: int, kinds: bool = False) -> tuple[list[Record], set[str]]:
    """The records with a third of the answers exchanged among themselves, and the ids of those.

    kinds: each then answers another kind of question than the one that is asked.
    """
    chosen = random.Random(seed).sample(range(len(records)), len(records) // 3)
    if kinds:
        chosen.sort(key=lambda i: str(kind_of(records[i])))
    asked = [kind_of(records[i]) if kinds else i for i in chosen]
    away = max(asked.count(kind) for kind in asked)  # in sorted order, nothing this far away is of the same kind
    out = list(records)
    for place, i in enumerate(chosen):
        out[i] = {**records[i], "output": records[chosen[(place + away) % len(chosen)]]["output"]}
    return out, {records[i]["id"] for i in chosen}


def copied(records: Sequence[Record], *, sources: int, copies: int, seed: int) -> tuple[list[Record], dict[str, str]]:
    """The records with near-copies of the first `sources` of them; and by id the source of each row of a group."""
    out, source = list(records), {}
    for i, record in enumerate(records[:sources]):
        source[record["id"]] = record["id"]
        for k in range(copies):
            copy = near_copy(record, seed=f"{seed}-{i}-{k}", name=f"{record['id']}#{k}")
            out.append(copy)
            source[copy["id"]] = record["id"]
    return out, source


def near_copy(record: Mapping[str, str], *, seed: str, name: str) -> Record:
    """The record with one word in forty of its answer, and one at least, replaced by a number; `name` is its id."""
    rng, words = random.Random(seed), record["output"].split(" ")
    for place in rng.sample(range(len(words)), max(len(words) // 40, 1)):
        words[place] = str(rng.randrange(10**6))
    return {**record, "output": " ".join(words), "id": name}


def write(records: Sequence[Mapping[str, str]], path: Path) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def ids_of_rows(pool: Pool) -> list[str]:
    """The ids of the records that the training rows of a pool of examples are, in the order of the rows."""
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    return [pool.documents.ids[k] for k in spans.document.tolist()]


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The chance that one of the g rows scores higher than one of the b; ties count half. NaN scores below all."""
    high, low = (np.nan_to_num(np.asarray(values, float), nan=-np.inf) for values in (good, bad))
    more, equal = high[:, None] > low, high[:, None] == low  # (g, b)
    return float((more + 0.5 * equal).mean())
