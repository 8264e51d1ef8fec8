import subprocess
import sys

import numpy as np
import pytest
import torch
from data_corpora import make, settings, texts, write_jsonl
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from regimen.core.errors import ConfigError
from regimen.data.encoding import Encoder
from regimen.data.settings import TokenizerSettings
from regimen.data.tokenizer import EOS, build, load, save, token_bytes

BYTES = build(TokenizerSettings(kind="bytes"), ())
BPE = build(TokenizerSettings(kind="bpe", vocab_size=400), texts(50, seed="t"))


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@hypothesis_settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    sizes = token_bytes(tokenizer)
    (ids,) = Encoder(tokenizer, sizes).encode([text])
    assert tokenizer.decode(ids.tolist()) == text
    assert sizes[ids].sum() == len(text.encode())


def test_the_byte_tokenizer_has_a_token_per_byte():
    sizes = token_bytes(BYTES)
    assert len(sizes) == 258
    assert sizes.tolist() == [0, 0, *[1] * 256]
    (ids,) = Encoder(BYTES, sizes).encode(["naïve"])
    assert len(ids) == 6


def test_special_tokens_in_a_text_are_plain_text():
    (ids,) = Encoder(BPE, token_bytes(BPE)).encode([f"a{EOS}b"])
    assert BPE.eos_token_id not in ids.tolist()
    assert BPE.decode(ids.tolist()) == f"a{EOS}b"


def test_bpe_learns_from_the_training_split_alone(tmp_path):
    write_jsonl(tmp_path / "c.jsonl", [f"{word} " * 30 for word in ("quizzical", "marmalade", "thunderous", "obelisk")])
    dataset = settings(tmp_path / "c.jsonl", tokenizer={"kind": "bpe", "vocab_size": 400}, validation={"fraction": 0.3})
    pool = make(dataset, tmp_path / "pools")
    vocabulary = {token.removeprefix("Ġ") for token in load(pool.tokenizer_path).get_vocab()}
    words = dict(zip(pool.documents.ids, ("quizzical", "marmalade", "thunderous", "obelisk"), strict=False))
    for number, split in zip(pool.documents.ids, pool.documents.splits, strict=True):
        assert (words[number] in vocabulary) == (split == "train")


def test_training_is_the_same_in_every_process(tmp_path):
    save(BPE, tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from regimen.data.settings import TokenizerSettings as S;"
        "from regimen.data.tokenizer import build, save; from data_corpora import texts;"
        "save(build(S(kind='bpe', vocab_size=400), texts(50, seed='t')), Path(sys.argv[1]))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "TOKENIZERS_PARALLELISM": "true"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    for name in ("tokenizer.json", "token_bytes.npy"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_ready_tokenizer_is_taken_from_its_folder(corpus, tmp_path):
    save(BPE, tmp_path / "ready")
    dataset = settings(corpus, tokenizer={"kind": "hf", "path": str(tmp_path / "ready")})
    pool = make(dataset, tmp_path / "pools")
    assert pool.vocab_size == len(BPE)
    assert pool.eos_id == BPE.eos_token_id
    assert AutoTokenizer.from_pretrained(pool.tokenizer_path).get_vocab() == BPE.get_vocab()
    assert torch.equal(pool.token_bytes, torch.from_numpy(token_bytes(BPE)))
    assert pool.manifest["tokenizer"]["bytes_per_text_byte"] == 1


def test_a_tokenizer_that_is_not_there_says_what_to_do(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"cannot be loaded(.|\n)*kind=bpe"):
        build(TokenizerSettings(kind="hf", path=str(tmp_path / "nosuch")), ())


def test_sentencepiece_pieces_and_byte_tokens_are_counted():
    vocabulary = {"<unk>": 0, "<s>": 1, "<0xE2>": 2, "<0x98>": 3, "▁the": 4, "▁": 5, "né": 6}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    assert token_bytes(tokenizer).tolist() == [0, 0, 1, 1, 4, 1, 3]
    assert token_bytes(tokenizer).dtype == np.int32


def test_token_bytes_that_do_not_add_up_are_reported(corpus, tmp_path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1, "the": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[EOS]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.warns(UserWarning, match="token_bytes cover"):
        make(settings(corpus, tokenizer={"kind": "hf", "path": str(tmp_path / "words")}), tmp_path / "pools")
