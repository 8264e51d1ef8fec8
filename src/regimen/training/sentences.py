"""Sentence embeddings by a model of the user's, through the library sentence-transformers.

Letters: n texts, w width of the encoder.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from regimen.core.errors import ConfigError


def sentence_embeddings(texts: list[str], encoder: str, *, device: torch.device, batch_size: int) -> Tensor:
    """Embeddings (n, w) float32 on the CPU, not normalised unless the encoder does so itself.

    encoder: a folder, or a name on the hub. Texts beyond the encoder's context lose their end.
    Raises ConfigError where the library or the encoder is missing.
    """
    model = _load(encoder, str(device))
    found: Tensor = model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return found.float().cpu()


def encoder_flops(encoder: str, tokens: int, *, device: torch.device) -> float:
    """FLOPs of a forward pass over so many tokens: two per parameter that is no look-up table; attention apart."""
    model = _load(encoder, str(device))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return 2.0 * tokens * sum(p.numel() for p in model.parameters() if id(p) not in tables)


@lru_cache(maxsize=1)
def _load(encoder: str, device: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations are not the user's
            from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            "sentence embeddings need the package sentence-transformers",
            got=f"import sentence_transformers: {error}",
            do="pip install 'regimen[sentences]', or use hidden states of a model: regimen.signals.embedding.Embedding",
        ) from error
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(encoder, device=device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "the sentence encoder cannot be loaded",
            got=f"encoder={encoder}: {str(error).splitlines()[0]}",
            allowed="a folder that sentence-transformers saved, or a name on the Hugging Face hub",
        ) from error
