"""Image-text pairs to features: a frozen CLIP reads a list of images with captions, once, before any run.

The list is JSON lines: {"id": ..., "image": path, "text": caption}, and where there are classes "label"; text is then
that of the class. Image paths are relative to the list. With a pool, `id` is that of the document, each row must hold
one document (a pool for fine-tuning, format sft, does), and the features are numbered by row and bound to the pool;
without one, lines are rows 0, 1, ... The features are for `signals.clip_features.ClipFeatures`:

    from regimen.data.pairs import encode_pairs
    encode_pairs("pairs.jsonl", "pool.npz", model="openai/clip-vit-base-patch32", pool=POOL)
    encode_pairs("wanted.jsonl", "target.npz", model="openai/clip-vit-base-patch32", pool=POOL, split="target")

POOL is the folder that `regimen prepare` prints.
Letters: N pairs, d dimensions of CLIP's space.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError, DataError
from regimen.data.images import pixels
from regimen.data.pool import Pool, RowTable


class Pair(NamedTuple):
    """A line of the list."""

    id: str | None
    image: Path
    text: str
    label: str | None


def encode_pairs(
    listed: str | Path,
    to: str | Path,
    *,
    model: str | Path,
    pool: str | Path | None = None,
    split: Literal["train", "target"] = "train",
    batch_size: int = 64,
    device: str = "cpu",
) -> Path:
    """Writes the features of the pairs in `listed` to `to` (.npz) and returns its path.

    model: folder or hub name of a CLIP. split: the rows of the pool that are encoded, `target` for its target set.
    Raises ConfigError for a model that is no CLIP or a package that is missing, DataError for a list or image that
    cannot be used, or that lacks a row's pair.
    """
    to, pairs, extra = Path(to), read_pairs(Path(listed)), {}
    if to.suffix != ".npz":
        raise ConfigError("features are kept in a NumPy archive", got=to, allowed="a name that ends in .npz")
    if pool is not None:
        opened = Pool.open(Path(pool))
        table = _table(opened, split)
        pairs = _of_rows(opened.documents.ids, table, pairs, Path(listed))
        extra["pool"] = np.array(table.index.fingerprint)
    if pairs[0].label is not None:
        _, extra["label"] = np.unique([str(pair.label) for pair in pairs], return_inverse=True)
    image, text = FrozenClip(model, device=device).encode(pairs, batch_size=batch_size)
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, image=image.numpy(), text=text.numpy(), model=np.array(str(model)), **extra)
    os.replace(temporary, to)
    return to


def read_pairs(file: Path) -> list[Pair]:
    """The lines of a list of pairs. Raises DataError for one that cannot be used, and for a list without any."""
    pairs = []
    if not file.is_file():
        raise DataError("there is no list of pairs here", got=file)
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                pairs.append(_pair(file, number, line))
    if not pairs:
        raise DataError("the list has no pairs", got=file)
    if len({pair.label is None for pair in pairs}) > 1:
        raise DataError("some pairs have a label and some have none", got=file, do="give all of them a class, or none")
    return pairs


def _pair(file: Path, number: int, line: str) -> Pair:
    record: Any = None
    with contextlib.suppress(json.JSONDecodeError):
        record = json.loads(line)
    given = record if isinstance(record, dict) else {}
    image, text, label, id = (given.get(name) for name in ("image", "text", "label", "id"))
    if not (isinstance(image, str) and image and isinstance(text, str) and text.strip()):
        allowed = '{"image": path, "text": caption}, with "id" for a pool and "label" for classes'
        raise DataError(f"{file}:{number}: no image with a text", got=line.strip()[:80], allowed=allowed)
    return Pair(None if id is None else str(id), file.parent / image, text, None if label is None else str(label))


def _table(pool: Pool, split: str) -> RowTable:
    if split not in ("train", "target"):
        raise ConfigError("unknown rows to encode", got=f"split={split}", allowed="train, target")
    if split == "train":
        return pool.train
    if pool.target is None:
        do = "set dataset.target.path=FILE or dataset.target.from=[domain,...] and prepare it again"
        raise ConfigError("the pool has no target set", got=pool.path, do=do)
    return pool.target


def _of_rows(names: Sequence[str], table: RowTable, pairs: Sequence[Pair], file: Path) -> list[Pair]:
    """The pair of each row. names: the id of each document of the pool."""
    spans = table.documents(torch.arange(table.index.rows))
    if not torch.equal(spans.row, torch.arange(table.index.rows)):
        raise DataError(
            "rows of several documents have no image of their own",
            got=f"{len(spans.row)} parts of documents in {table.index.rows} rows",
            do="prepare the captions with objective=sft, a dataset of format sft, which gives each its own row",
        )
    by_id = {pair.id: pair for pair in pairs}
    if len(by_id) < len(pairs):
        raise DataError("two pairs have the same id, or none", got=file)
    wanted = [names[document] for document in spans.document.tolist()]
    missing = [name for name in wanted if name not in by_id]
    if missing:
        got = f"{file}: {len(missing)} of {len(wanted)} rows, ids {missing[:5]} ..."
        raise DataError("rows of the pool have no pair in the list", got=got)
    return [by_id[name] for name in wanted]


class FrozenClip:
    """A frozen CLIP. Raises ConfigError for a model that is none or cannot be loaded whole."""

    def __init__(self, model: str | Path, *, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel

        name = str(model)
        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "clip":
                raise ConfigError("the model that encodes pairs is no CLIP", got=f"{name}: {kind}", allowed="clip")
            loaded, report = CLIPModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            do = "type a folder or hub name of a CLIP"
            raise ConfigError(
                "the CLIP cannot be loaded", got=f"{name}: {str(error).splitlines()[0]}", do=do
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise ConfigError("the CLIP lacks weights", got=f"{name}: {missing[:5]} ...")
        self.model: Any = loaded.eval().requires_grad_(False).to(device)
        self.device = device

    def encode(self, pairs: Sequence[Pair], *, batch_size: int) -> tuple[Tensor, Tensor]:
        """Features (N, d) float32 of the images and of the texts, which are cut where CLIP reads no further."""
        batches = [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
        with torch.inference_mode():
            image = torch.cat([self._images([pair.image for pair in batch]) for batch in batches])  # (N, d)
            text = torch.cat([self._texts([pair.text for pair in batch]) for batch in batches])  # (N, d)
        return image, text

    def _images(self, files: list[Path]) -> Tensor:
        values = pixels(files, size=self.model.config.vision_config.image_size)  # (B, 3, s, s)
        found = self.model.vision_model(pixel_values=values.to(self.device))
        return self.model.visual_projection(found.pooler_output).cpu()  # (B, d)

    def _texts(self, texts: list[str]) -> Tensor:
        read = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        found = self.model.text_model(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        return self.model.text_projection(found.pooler_output).cpu()  # (B, d)
