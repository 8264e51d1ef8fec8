"""Embeddings of rows: a language model's hidden states, pooled; or what a sentence encoder makes of the text.

Papers: RDS+, arXiv 2503.01807, last layer and weights t / (1 + ... + T); the mean over tokens, NEAR and cluster-LESS of
DataFlex (OpenDCAI/DataFlex).
Differs from the sources: NEAR embeds with a text encoder (Qwen3-Embedding-0.6B); its file here takes hidden states of
a model that reads the pool's tokens, and `SentenceEmbedding` takes any encoder.
Letters: n rows, T tokens, w width of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import POOLINGS, Pooling
from regimen.core.signal import Meter, Signal
from regimen.signals.influence import unit


@dataclass(frozen=True, kw_only=True)
class Embedding(Signal):
    """Vectors (n, w) float32 of rows.

    layer: after which layer, 0 is the token embedding, -1 the last.
    pooling: `mean`, `position_weighted` or `last`, of a row's tokens.
    model: the folder of a finished run, or one of its checkpoints; null for the model in training.
    normalise: whether vectors have length 1.
    """

    by_row: ClassVar[bool] = True
    compact: ClassVar[bool] = True
    layer: int = -1
    pooling: Pooling = "mean"
    model: str | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError("unknown pooling of hidden states", got=self.pooling, allowed=", ".join(POOLINGS))

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, w). Raises ConfigError where the model has no such layer."""
        at = meter if self.model is None else meter.under(self.model)
        states = at.states(ids, layer=self.layer, pooling=self.pooling)  # (n, w)
        return unit(states) if self.normalise else states

    def models(self) -> tuple[str | None, ...]:
        return (self.model,)


@dataclass(frozen=True, kw_only=True)
class SentenceEmbedding(Signal):
    """Vectors (n, w) float32 of the text of rows by a sentence encoder.

    encoder: a folder that sentence-transformers saved, or a name on the Hugging Face hub.
    normalise: whether vectors have length 1.
    """

    by_row: ClassVar[bool] = True
    compact: ClassVar[bool] = True
    encoder: str
    normalise: bool = True

    def __post_init__(self) -> None:
        if not self.encoder:
            raise ConfigError("no sentence encoder is given", do="set encoder to a folder or a name on the hub")

    def measure(self, meter: Meter, ids: Tensor) -> Tensor:
        """(n, w). Raises ConfigError as `Meter.sentences`."""
        vectors = meter.sentences(ids, self.encoder)  # (n, w)
        return unit(vectors) if self.normalise else vectors

    def models(self) -> tuple[str | None, ...]:
        return ()
