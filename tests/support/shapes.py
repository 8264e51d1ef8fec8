"""Small images of coloured shapes with captions, and a CLIP with random weights that reads both."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("disc", "square", "bars")
KINDS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def draw(file: Path, kind: str, rng: random.Random) -> None:
    """An image of 40 x 32 pixels: a shape of a random size and place on a grey ground."""
    colour, shape = kind.split()
    image = Image.new("RGB", (40, 32), (rng.randint(100, 140),) * 3)
    pen, size = ImageDraw.Draw(image), rng.randint(18, 24)
    left, top = rng.randint(4, 36 - size), rng.randint(0, 32 - size)
    box = (left, top, left + size, top + size)
    if shape == "disc":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        for x in range(left, left + size, 6):
            pen.rectangle((x, top, x + 2, top + size), fill=COLOURS[colour])
    image.save(file)


def write_pairs(folder: Path, kinds: list[str], captions: list[str], *, seed: int, labels: bool = False) -> Path:
    """Images of `kinds` and a list of pairs that gives them `captions`; ids are pair-0, pair-1, ..."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i, (kind, caption) in enumerate(zip(kinds, captions, strict=True)):
        draw(folder / f"{i}.png", kind, rng)
        records.append(
            {"id": f"pair-{i}", "image": f"{i}.png", "text": f"a {caption}"} | ({"label": caption} if labels else {})
        )
    listed = folder / "pairs.jsonl"
    listed.write_text("".join(json.dumps(record) + "\n" for record in records))
    return listed


def tiny_clip(folder: Path) -> Path:
    """A CLIP of two small towers with random weights, and a tokenizer of letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[]).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=tower | special | {"vocab_size": len(names), "max_position_embeddings": 24},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder
