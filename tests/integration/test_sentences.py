"""Sentence encoders: rows embedded through the library, compared, charged, and told apart by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from regimen.core.errors import ConfigError
from regimen.runs.identity import signal_identity
from regimen.signals.embedding import SentenceEmbedding
from regimen.signals.similarity import Similarity
from tests.integration.test_meter import IDS
from tests.integration.test_meter import corpus as corpus
from tests.integration.test_meter import home as home
from tests.integration.test_meter import meter as meter
from tests.integration.test_meter import pool as pool


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT over letters, with random weights, saved as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = {mark: i for i, mark in enumerate(["[PAD]", "[UNK]", *map(chr, range(33, 127))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(letters), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"), max_seq_length=64)
    SentenceTransformer(modules=[words, Pooling(8)], device="cpu").save(str(folder / "st"))
    return folder / "st"


def test_rows_are_embedded_as_the_library_does(meter, encoder) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(encoder), device="cpu")
    found = SentenceEmbedding(encoder=str(encoder), normalise=False).measure(meter, IDS)
    expected = library.encode(meter.texts(IDS), convert_to_tensor=True)
    assert torch.allclose(found, expected, atol=1e-5)
    clock = meter.sweeper.clock.charges["measuring"]
    assert clock.flops > 0 and clock.seconds > 0
    similarity = Similarity(of=SentenceEmbedding(encoder=str(encoder)))
    values = similarity.measure(meter, IDS)
    assert values.shape == (7, 6) and float(values.abs().max()) <= 1 + 1e-6


def test_an_encoder_counts_by_its_content(encoder, tmp_path) -> None:
    copy = Path(shutil.copytree(encoder, tmp_path / "copy"))
    first, second = (signal_identity(SentenceEmbedding(encoder=str(path))) for path in (encoder, copy))
    assert first == second
    (copy / "README.md").write_text("changed")
    assert signal_identity(SentenceEmbedding(encoder=str(copy))) != first


def test_mistakes(meter, tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceEmbedding(encoder=str(tmp_path / "nothing")).measure(meter, IDS)
    with pytest.raises(ConfigError, match="no sentence encoder"):
        SentenceEmbedding(encoder="")
