"""One-example rows: which tokens are learnt, what is cut, which examples are where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sft_corpora import example, make, texts, told, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from regimen.core.errors import ConfigError, DataError
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.data.templates import PREAMBLE
from regimen.data.tokenizer import byte_alphabet, load
from regimen.training.cross_entropy import IGNORE
from regimen.training.loader import collate

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def chat_tokenizer(folder: Path, template: str = CHAT) -> Path:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(byte_alphabet())]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>" if template == CHAT else "<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(folder))
    return folder


def test_exactly_the_answer_and_its_eos_are_learnt(tmp_path: Path) -> None:
    pool = make(write(tmp_path / "a.jsonl", [example(i) for i in range(20)]), tmp_path / "pools")
    found = texts(pool)
    assert len(found) == pool.train.index.rows >= 10
    eos = "<|endoftext|>"
    for name, (whole, learnt) in found.items():
        record = example(int(name.removeprefix("sums-")))
        given = f"### Input\n{record['input']}\n\n" if record["input"] else ""
        asked = f"{eos}{PREAMBLE}### Instruction\n{record['instruction']}\n\n{given}### Response\n"
        assert whole == f"{asked}{record['output']}{eos}"
        assert learnt == f"{record['output']}{eos}"
    tokens = pool.train.index.tokens_of(torch.arange(pool.train.index.rows))
    assert sorted(tokens.tolist()) == sorted(len(learnt) - len(eos) + 1 for _, learnt in found.values())


def test_rows_of_all_lengths_are_padded_and_only_answers_are_targets(tmp_path: Path) -> None:
    pool = make(write(tmp_path / "a.jsonl", [example(10**i) for i in range(12)]), tmp_path / "pools")
    ids = torch.arange(pool.train.index.rows)
    batch, rows = collate(pool.train, ids, document_mask=True), pool.train.read(ids)
    assert len(set(rows.lengths.tolist())) > 3
    assert batch["lengths"].tolist() == (rows.lengths - 1).tolist() == pool.train.index.inputs_of(ids).tolist()
    assert batch["tokens"].tolist() == pool.train.index.tokens_of(ids).tolist()
    for k, length in enumerate(rows.lengths.tolist()):
        targets, learnt = batch["targets"][k], int(batch["tokens"][k])
        assert targets[length - 1 - learnt : length - 1].tolist() == rows.tokens[k, length - learnt : length].tolist()
        assert (targets != IGNORE).sum() == learnt
        assert batch["inputs"][k, length:].tolist() == [pool.pad_id] * (batch["inputs"].shape[1] - length)
        assert batch["positions"][k].tolist() == list(range(batch["inputs"].shape[1]))


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "Bye"},
    {"role": "user", "content": "nobody answers"},
]


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_every_turn_of_the_assistant_is_learnt(template: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        [{"id": str(i), "messages": [*MESSAGES, {"role": "user", "content": str(i)}]} for i in range(9)],
    )
    path.write_text(path.read_text() + json.dumps({"id": "other", "messages": MESSAGES[1:3]}) + "\n")
    tokenizer = {"kind": "hf", "path": str(chat_tokenizer(tmp_path / "tokenizer"))}
    pool = make(
        path,
        tmp_path / "pools",
        sft={"messages_field": "messages", "template": template},
        **({"tokenizer": tokenizer} if template == "chat" else {}),
        validation={"fraction": 0.01},
    )
    assert sum(pool.manifest["duplicates_removed"].values()) == 8, "what nobody answers is no part of an example"
    ((whole, learnt),) = texts(pool).values()
    if template == "chat":
        assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n" in whole
        assert learnt.startswith("Hello<|im_end|>")
        assert set(learnt.split("<|im_end|>")) <= {"Hello", "Bye", ""}
        special = load(pool.tokenizer_path).convert_tokens_to_ids("<|im_end|>")
        assert special in pool.train.read(torch.tensor([0])).tokens[0], "the marks are tokens, not text"
    else:
        assert learnt.startswith("Hello<|endoftext|>") and whole.count("### Response\n") == learnt.count("<|end")


def test_a_template_without_an_end_gets_eos(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i) for i in range(9)])
    tokenizer = {"kind": "hf", "path": str(chat_tokenizer(tmp_path / "tokenizer", NO_END))}
    pool = make(path, tmp_path / "pools", sft={"template": "chat"}, tokenizer=tokenizer)
    for whole, learnt in texts(pool).values():
        assert learnt == whole.partition("assistant: ")[2].rstrip() and learnt.endswith("<|endoftext|>")


def test_what_the_template_cannot_do_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i) for i in range(9)])
    with pytest.raises(ConfigError, match=r"no chat template(.|\n)*dataset.sft.template=alpaca"):
        make(path, tmp_path / "pools", sft={"template": "chat"})
    tokenizer = {"kind": "hf", "path": str(chat_tokenizer(tmp_path / "tokenizer"))}
    write(path, [example(i) | {"output": "<|im_end|>"} for i in range(9)])
    with pytest.raises(DataError, match="spells out the special token"):
        make(path, tmp_path / "pools", sft={"template": "chat"}, tokenizer=tokenizer)
    changing = chat_tokenizer(
        tmp_path / "changing", "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    write(path, [example(i) for i in range(9)])
    with pytest.raises(ConfigError, match="changes earlier turns"):
        make(path, tmp_path / "pools", sft={"template": "chat"}, tokenizer={"kind": "hf", "path": str(changing)})


def test_long_examples_lose_their_end_and_those_without_an_answer_are_counted(tmp_path: Path) -> None:
    long = [example(i) | {"output": "x" * 500 + str(i)} for i in range(10)]
    lost = [example(i) | {"id": f"lost-{i}", "instruction": "y" * 300 + str(i)} for i in range(20)]
    pool = make(write(tmp_path / "a.jsonl", long + lost), tmp_path / "pools", validation={"fraction": 0.3})
    train = pool.manifest["counts"]["a"]["train"]
    assert train["cut"] == train["rows"] == pool.train.index.rows
    assert train["without_target"] == train["documents"] - train["rows"] > 0
    rows = pool.train.read(torch.arange(train["rows"]))
    assert set(rows.lengths.tolist()) == {257} and train["target_tokens"] == int(rows.targets.sum())
    assert all(set(learnt) == {"x"} for _, learnt in texts(pool).values()), "no EOS where the answer goes on"
    with pytest.raises(DataError, match=r"prompt longer than a row(.|\n)*dataset.seq_len"):
        make(write(tmp_path / "b.jsonl", lost), tmp_path / "pools")


def test_domains_come_from_a_field_and_copies_are_dropped(tmp_path: Path) -> None:
    records = [example(i, task) for i in range(10) for task in ("sums", "code")]
    path = write(tmp_path / "a.jsonl", records + [r | {"id": "copy"} for r in records[:6]])
    pool = make(path, tmp_path / "pools", domain_field="task")
    assert pool.domains == ("code", "sums") and len(pool.documents) == 20
    assert sum(pool.manifest["duplicates_removed"].values()) == 6
    domain = pool.train.index.domain_of(torch.arange(pool.train.index.rows))
    for row, k in enumerate(domain.tolist()):
        assert f"Add one ({pool.domains[k]})" in told(pool, row)[0]
    assert make(path, tmp_path / "pools", domain_field="task").fingerprint == pool.fingerprint
    assert make(path, tmp_path / "pools").fingerprint != pool.fingerprint


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        ({"output": " "}, {}, "output in 'output' is empty"),
        ({"output": None}, {}, "field 'output' is missing or null(.|\n)*fields(.|\n)*output_field"),
        ({"instruction": "", "input": ""}, {}, "instruction in 'instruction' is empty"),
        ({"output": 3}, {}, "must be a string"),
        ({}, {"messages_field": "messages"}, "no list of turns(.|\n)*messages_field"),
        ({"messages": [{"role": "usr", "content": "a"}]}, {"messages_field": "messages"}, "unknown role, did you mean"),
        ({"messages": [{"role": "user", "content": "a"}]}, {"messages_field": "messages"}, "no turn of the assistant"),
        ({"messages": [{"role": "assistant", "content": ""}]}, {"messages_field": "messages"}, "assistant(.|\n)*empty"),
    ],
)
def test_bad_records_are_refused_with_their_line(change: Any, fields: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [example(i) | change for i in range(9)])
    with pytest.raises(DataError, match=rf"a.jsonl:1: (.|\n)*{message}"):
        make(path, tmp_path / "pools", sft=fields)


def test_roles_and_fields_may_have_other_names(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = write(
        tmp_path / "a.jsonl", [{"conversations": [*turns, turns[0], {**turns[1], "value": str(i)}]} for i in range(9)]
    )
    names = {"messages_field": "conversations", "role_field": "from", "content_field": "value"}
    pool = make(path, tmp_path / "pools", sft=names | {"roles": {"human": "user", "gpt": "assistant"}})
    assert all(learnt.startswith("Hello<|endoftext|>") for _, learnt in texts(pool).values())


def test_the_standard_library_has_functions_to_describe(tmp_path: Path) -> None:
    settings = {"source": "local_sft", "format": "sft", "tokenizer": {"kind": "bytes"}, "seq_len": 2048}
    found = prepare(settings | {"max_mb_per_domain": 0.02, "overlap": {"n": 0}}, root=tmp_path)
    assert found is not None
    pool = Pool.open(found)
    assert "asyncio" in pool.domains and len(pool.domains) == 8
    whole, learnt = told(pool, 0)
    prompt = whole[: -len(learnt)]
    assert "def " in prompt and learnt.removesuffix("<|endoftext|>").strip() not in prompt
