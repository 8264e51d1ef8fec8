"""Tokenizers: trained byte-level BPE, plain bytes, or a ready one; and how many bytes each of their tokens stands for.

Letters: V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from regimen.core.errors import ConfigError
from regimen.data.settings import TokenizerSettings

EOS, PAD = "<|endoftext|>", "<|pad|>"


def build(settings: TokenizerSettings, texts: Iterable[str]) -> Any:
    """A PreTrainedTokenizerFast with EOS and pad. Only `bpe` reads `texts`; equal texts give an equal tokenizer."""
    if settings.kind == "hf":
        return _ready(settings)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if settings.kind == "bytes":
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate([EOS, PAD, *sorted(byte_alphabet())])}, []))
    else:
        backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if settings.kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=[EOS, PAD],
            initial_alphabet=sorted(byte_alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, bos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def save(tokenizer: Any, folder: Path) -> None:
    """Writes what `from_pretrained` reads, and token_bytes.npy."""
    tokenizer.save_pretrained(str(folder))
    np.save(folder / "token_bytes.npy", token_bytes(tokenizer))


def load(folder: Path) -> Any:
    """The PreTrainedTokenizerFast that `save` wrote."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def byte_alphabet() -> set[str]:
    """The 256 characters by which byte-level tokenizers write bytes."""
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


def token_bytes(tokenizer: Any) -> np.ndarray:
    """(V,) int32 UTF-8 bytes that each token stands for; 0 for special tokens.

    Exact for byte-level alphabets and for SentencePiece pieces with byte tokens; a `##` of WordPiece counts nothing.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps([backend["pre_tokenizer"], backend["decoder"]])
    added = {entry["id"]: entry for entry in backend["added_tokens"]}
    vocabulary = tokenizer.get_vocab()
    sizes = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for token, i in vocabulary.items():
        if i in added:
            sizes[i] = 0 if added[i]["special"] else len(token.encode())
        else:
            sizes[i] = len(token) if byte_level else _piece_bytes(token)
    return sizes


def _piece_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.removeprefix("##").replace("\u2581", " ").encode())


def _ready(settings: TokenizerSettings) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.path, revision=settings.revision, use_fast=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the tokenizer cannot be loaded",
            got=f"dataset.tokenizer.path={settings.path}: {str(error).splitlines()[0]}",
            allowed="a folder that holds tokenizer.json, or a name on the Hugging Face hub that this machine reaches",
            do="download it first with `hf download NAME --local-dir FOLDER`, or type dataset.tokenizer.kind=bpe",
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError("only fast tokenizers can be used", got=settings.path, do="save it with tokenizer.json")
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": EOS})
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
