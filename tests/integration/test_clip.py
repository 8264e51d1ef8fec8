"""Captions through the harness: a pool for fine-tuning, features of its images, a run that leaves wrong pairs out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

from regimen.core.plan import digest_of
from regimen.core.strategy import Selection
from regimen.data.pairs import encode_pairs
from regimen.runs.experiment import make_pool
from tests.support.runs import lines, run, settings_of
from tests.support.shapes import KINDS, tiny_clip, write_pairs

SFT = (
    *("dataset=sft_files", "objective=sft", "dataset.tokenizer.kind=bytes", "dataset.seq_len=256"),
    *("dataset.overlap.n=0", "dataset.target.rows_per_subtask=null"),
)


def captioned(folder: Path, kinds: list[str], captions: list[str], *, seed: int, name: str) -> tuple[Path, Path]:
    """A list of pairs, and their captions as examples for fine-tuning under the same ids."""
    listed = write_pairs(folder / "images", kinds, captions, seed=seed)
    pairs = [json.loads(line) for line in listed.read_text().splitlines()]
    for i, pair in enumerate(pairs):
        pair |= {"id": f"{name}-{i}", "instruction": f"What is in picture {name}-{i}?", "output": pair["text"]}
    text = "".join(json.dumps(pair) + "\n" for pair in pairs)
    listed.write_text(text)
    (folder / "captions").mkdir()
    examples = folder / "captions" / "captions.jsonl"
    examples.write_text(text)
    return listed, examples


def test_wrong_pairs_are_not_trained_on(tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds = [rng.choice(KINDS) for _ in range(60)]
    captions = list(kinds)
    for i in range(0, 60, 10):
        captions[i] = rng.choice([kind for kind in KINDS if kind.split()[0] != kinds[i].split()[0]])
    right = [kind for kind in KINDS for _ in range(8)]
    pool_list, examples = captioned(tmp_path / "pool", kinds, captions, seed=0, name="pool")
    target_list, targets = captioned(tmp_path / "target", right, right, seed=1, name="target")
    common = (*SFT, f"dataset.target.path={targets}")
    pool, clip = make_pool(settings_of(examples, tmp_path, *common), progress=False), tiny_clip(tmp_path / "clip")
    features = encode_pairs(pool_list, tmp_path / "pool.npz", model=clip, pool=pool.path)
    of_target = encode_pairs(target_list, tmp_path / "target.npz", model=clip, pool=pool.path, split="target")
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    numbers = [int(pool.documents.ids[k].removeprefix("pool-")) for k in spans.document.tolist()]
    good = torch.tensor([row for row, number in enumerate(numbers) if number % 10])
    assert 0 < len(good) < len(numbers)
    folder = run(
        examples,
        tmp_path,
        *common,
        "method=clip",
        f"strategies.clip.by.path={features}",
        f"strategies.clip.target.path={of_target}",
        "strategies.clip.diversity_weight=0",
        *("strategies.clip.ratio=null", f"strategies.clip.count={len(good)}"),
    )
    (decision,) = [line for line in lines(folder / "record.jsonl") if line.get("kind") == "selector"]
    assert decision["kept"] == len(good) and decision["of"] == len(numbers)
    assert decision["digest"] == digest_of(*Selection(good))
