"""Images as CLIP reads them, made with Pillow alone: torchvision is not needed.

Source: CLIP, arXiv 2103.00020, and its released preprocessing: the shorter side resized with a bicubic filter, the
middle cut out, values from 0 to 1, then shifted and scaled by channel. What is transparent becomes white.
Letters: B images, s pixels of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.core.errors import ConfigError, DataError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, by channel
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def pixels(files: Sequence[Path], *, size: int) -> Tensor:
    """Images (B, 3, s, s) float32 as CLIP reads them. Raises ConfigError without Pillow, DataError for a bad image."""
    images = np.stack([_square(file, size) for file in files])  # (B, s, s, 3) uint8
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255  # (B, 3, s, s)
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def _square(file: Path, size: int) -> np.ndarray:
    """(s, s, 3) uint8 colours: upright, resized, and the middle of it."""
    pillow, turned = _pillow()
    try:
        with pillow.open(file) as opened:
            image = turned(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise DataError("an image cannot be read", got=f"{file}: {error}", do="correct or drop its pair") from error
    image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    width, height = image.size
    short = min(width, height)
    image = image.resize((size * width // short, size * height // short), pillow.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _pillow() -> tuple[Any, Any]:
    """PIL.Image, and the function that turns an image as its camera was held."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError(
            "encoding images needs the package Pillow",
            got=f"import PIL says: {error}",
            do="pip install 'regimen[multimodal]'",
        ) from error
    return Image, ImageOps.exif_transpose
