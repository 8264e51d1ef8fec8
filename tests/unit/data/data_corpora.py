"""Small corpora with known documents."""

import json
import random
from pathlib import Path

from regimen.data.pool import Pool
from regimen.data.prepare import prepare

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "1234", "stars", "naïve", "café", "☕", "😀"]


def texts(count: int, *, seed: str, longest: int = 60) -> list[str]:
    """`count` distinct texts of 1 to `longest` words, some of them with line ends and other alphabets."""
    rng = random.Random(seed)
    return [f"{seed} {k}: " + " ".join(rng.choices(WORDS, k=rng.randint(1, longest))) + "\n" for k in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{path.stem}-{k}", "text": text}) for k, text in enumerate(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def settings(path: Path, **changes: object) -> dict:
    base = {"source": "jsonl", "path": str(path), "seq_len": 32, "tokenizer": {"kind": "bytes"}}
    return base | {"validation": {"fraction": 0.1}, "overlap": {"n": 0}} | changes


def make(dataset: dict, root: Path, **options: object) -> Pool:
    path = prepare(dataset, root=root, **options)
    assert path is not None
    return Pool.open(path)
