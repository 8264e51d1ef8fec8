"""Images and captions to features: preprocessing, the numbering of rows, and lists, images and models that fail."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sft_corpora import make
from tests.support.shapes import KINDS, draw, tiny_clip, write_pairs
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from regimen.core.errors import ConfigError, DataError
from regimen.data.images import pixels
from regimen.data.pairs import FrozenClip, encode_pairs, read_pairs
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.signals.clip_features import ClipFeatures, read_archive


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def noise(file: Path, width: int, height: int, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(width * height)
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode=None).save(file)
    return file


@pytest.mark.parametrize(("width", "height"), [(61, 37), (37, 61), (32, 32), (20, 9), (33, 200)])
def test_pixels_are_those_of_the_released_preprocessing(tmp_path: Path, width: int, height: int) -> None:
    files = [noise(tmp_path / "a.png", width, height), noise(tmp_path / "b.png", width, height, "RGBA")]
    files.append(noise(tmp_path / "c.png", width, height, "L"))
    size = {"height": 32, "width": 32}
    released = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    wanted = released(images=[Image.open(file) for file in files], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(files, size=32), wanted, rtol=0, atol=1e-5)


def test_images_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    image = Image.open(noise(tmp_path / "a.png", 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    image.save(tmp_path / "b.png", exif=exif)
    turned = pixels([tmp_path / "b.png"], size=32)
    torch.testing.assert_close(turned.rot90(1, (2, 3)), pixels([tmp_path / "a.png"], size=32))


def test_features_are_the_models_own_whatever_the_batch(tmp_path: Path, clip: Path) -> None:
    """Against the whole model on one pair at a time; a long caption is cut where CLIP reads no further."""
    from transformers import CLIPModel

    captions = [*KINDS[:4], "a very long caption of many words"]
    pairs = read_pairs(write_pairs(tmp_path, [*KINDS[:5]], captions, seed=0))
    encoder, model = FrozenClip(clip), CLIPModel.from_pretrained(clip).eval()
    found = [encoder.encode(pairs, batch_size=size) for size in (2, 5)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for i, pair in enumerate(pairs):
        read = encoder.tokenizer([pair.text], truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            out = model(**read, pixel_values=pixels([pair.image], size=32))
        own = out.vision_model_output.pooler_output[0], out.text_model_output.pooler_output[0]
        for wanted, features in zip(own, found[0], strict=True):
            torch.testing.assert_close(features[i], wanted, rtol=0, atol=1e-6)


def test_without_a_pool_lines_are_rows(tmp_path: Path, clip: Path) -> None:
    listed = write_pairs(tmp_path / "a", KINDS[:6] * 2, KINDS[:6] * 2, seed=0, labels=True)
    arrays = read_archive(encode_pairs(listed, tmp_path / "new" / "a.npz", model=clip, batch_size=5))
    assert arrays["image"].shape == arrays["text"].shape == (12, 32)
    assert arrays["label"].tolist() == [sorted(KINDS[:6]).index(kind) for kind in KINDS[:6]] * 2
    np.testing.assert_allclose(arrays["text"][:6], arrays["text"][6:], rtol=0, atol=1e-6)
    assert np.abs(arrays["image"][:6] - arrays["image"][6:]).max() > 1e-3
    assert str(arrays["model"]) == str(clip) and "pool" not in arrays
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.npz"]


def captioned(folder: Path, count: int, seed: int = 0, name: str = "pair") -> tuple[Path, Path]:
    """A list of pairs, and the captions as examples for fine-tuning, in another order."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    listed = write_pairs(folder, kinds, kinds, seed=seed)
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    lines = [line | {"id": line["id"].replace("pair", name)} for line in lines]
    listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = [
        {"id": line["id"], "instruction": f"Describe {name} {i}", "output": line["text"], "task": "say"}
        for i, line in enumerate(lines)
    ]
    random.Random(seed).shuffle(examples)
    (folder / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in examples))
    return listed, folder / "examples.jsonl"


def test_rows_of_a_pool_get_the_pairs_of_their_documents(tmp_path: Path, clip: Path) -> None:
    """Numbered by row, bound to the pool and to its target set, and read back by the signal."""
    listed, examples = captioned(tmp_path / "a", 30)
    wanted, targets = captioned(tmp_path / "t", 8, seed=1, name="wanted")
    pool = make(examples, tmp_path / "pools", target={"path": str(targets), "rows_per_subtask": None})
    assert pool.target is not None
    whole = read_archive(encode_pairs(listed, tmp_path / "lines.npz", model=clip))
    found = encode_pairs(listed, tmp_path / "pool.npz", model=clip, pool=pool.path)
    meter: Any = pool.train
    values = ClipFeatures(path=str(found)).measure(meter, torch.arange(pool.train.index.rows))
    spans = pool.train.documents(torch.arange(pool.train.index.rows))
    names = [pool.documents.ids[k] for k in spans.document.tolist()]
    assert 20 <= len(names) < 30
    for row, name in zip(values, names, strict=True):
        line = int(name.removeprefix("pair-"))
        own = np.concatenate([whole["image"][line], whole["text"][line]])
        torch.testing.assert_close(row, torch.from_numpy(own), rtol=0, atol=1e-6)
    target = encode_pairs(wanted, tmp_path / "target.npz", model=clip, pool=pool.path, split="target")
    meter = pool.target
    assert ClipFeatures(path=str(target)).measure(meter, torch.arange(8)).shape == (8, 64)
    with pytest.raises(ConfigError, match="another pool or target set"):
        ClipFeatures(path=str(found)).measure(meter, torch.arange(8))
    with pytest.raises(DataError, match=r"no pair in the list\n.*8 of 8 rows"):
        encode_pairs(listed, tmp_path / "b.npz", model=clip, pool=pool.path, split="target")
    with pytest.raises(ConfigError, match="train, target"):
        encode_pairs(listed, tmp_path / "b.npz", model=clip, pool=pool.path, split="validation")  # type: ignore[arg-type]


def test_pools_that_have_no_row_per_pair(tmp_path: Path, clip: Path) -> None:
    listed, examples = captioned(tmp_path / "a", 30)
    pool = make(examples, tmp_path / "pools")
    with pytest.raises(ConfigError, match="no target set"):
        encode_pairs(listed, tmp_path / "b.npz", model=clip, pool=pool.path, split="target")
    listed.write_text(listed.read_text() * 2)
    with pytest.raises(DataError, match="two pairs have the same id"):
        encode_pairs(listed, tmp_path / "b.npz", model=clip, pool=pool.path)
    packed = {"source": "jsonl", "path": str(examples), "text_field": "output", "tokenizer": {"kind": "bytes"}}
    packed |= {"seq_len": 64, "validation": {"fraction": 0.2}, "overlap": {"n": 0}}
    found = prepare(packed, root=tmp_path / "packed")
    assert found is not None and not Pool.open(found).train.examples
    with pytest.raises(DataError, match="format sft"):
        encode_pairs(listed, tmp_path / "b.npz", model=clip, pool=found)
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no pairs"),
        ("{\n", "pairs.jsonl:1: no image with a text"),
        ('\n["a.png", "a"]\n', "pairs.jsonl:2: no image"),
        ('{"image": "a.png"}\n', "no image with a text"),
        ('{"image": "a.png", "text": " "}\n', "no image with a text"),
        ('{"image": 3, "text": "a"}\n', "no image with a text"),
        ('{"image": "a.png", "text": "a", "label": 1}\n{"image": "a.png", "text": "a"}\n', "some have none"),
        ('{"image": "a.png", "text": "a"}\n', r"cannot be read\n.*a\.png: .*No such file"),
        ('{"image": "pairs.jsonl", "text": "a"}\n', "cannot be read"),
    ],
)
def test_lists_and_images_that_cannot_be_used(tmp_path: Path, clip: Path, text: str, words: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        encode_pairs(tmp_path / "pairs.jsonl", tmp_path / "a.npz", model=clip)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_torn_image(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", KINDS[0], random.Random(0))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        pixels([tmp_path / "a.png"], size=32)


def test_models_and_places_that_cannot_be_used(tmp_path: Path, clip: Path) -> None:
    listed = write_pairs(tmp_path / "a", KINDS[:2], KINDS[:2], seed=0)
    with pytest.raises(DataError, match="no list of pairs"):
        encode_pairs(tmp_path / "no.jsonl", tmp_path / "a.npz", model=clip)
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        encode_pairs(listed, tmp_path / "a.npy", model=clip)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        encode_pairs(listed, tmp_path / "a.npz", model=tmp_path / "empty")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match=r"no CLIP\n.*gpt2"):
        encode_pairs(listed, tmp_path / "a.npz", model=tmp_path / "gpt2")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install 'regimen\[multimodal\]'"):
        pixels([tmp_path / "a.png"], size=32)
