"""Text in and out of a model: a batch against one prompt at a time, a cache against none, rows against the pool's."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.data.pool import Pool
from regimen.data.prepare import prepare
from regimen.data.tokenizer import load
from regimen.training.attention import attention_weights
from regimen.training.cost import forward_flops, rows_flops
from regimen.training.generation import Sampling
from regimen.training.language import ModelLanguage
from regimen.training.passes import Passes
from tests.support.languages import CONTEXT, TEXTS, language_of, tiny, tokenizer_at

ARCHITECTURES = ("qwen2", "llama", "mistral", "gpt2", "gpt_neox")
LENGTHS = (3, 17, 9, 1, 30, 17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer_at(path)
    return path


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 258, (n,), generator=generator) for n in lengths]


def plainly(model: nn.Module, prompt: Tensor, count: int) -> list[int]:
    """The likeliest tokens one after another, each from a whole pass over one text."""
    text = prompt
    model.eval()
    with torch.no_grad():
        while len(text) < len(prompt) + count:
            text = torch.cat([text, model(input_ids=text[None]).logits[0, -1].argmax()[None]])
    return text[len(prompt) :].tolist()


# ---- generation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_a_loop_without_cache_or_padding(architecture: str, folder: Path) -> None:
    model = tiny(architecture)
    language = language_of(model, folder)
    asked = prompts(*LENGTHS)
    found = language.generate(asked, max_new_tokens=8)
    for prompt, answer in zip(asked, found, strict=True):
        loop = plainly(model, prompt, 8)
        assert answer.tolist() == loop[: loop.index(0) if 0 in loop else 8]
    assert len({tuple(answer.tolist()) for answer in found}) > 3


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_does_not_depend_on_the_batch(temperature: float, folder: Path) -> None:
    model, asked = tiny(), prompts(*LENGTHS)

    def answers(texts: list[Tensor], tokens: int) -> list[list[int]]:
        language = language_of(model, folder, tokens=tokens)
        drawn = language.generate(
            texts,
            max_new_tokens=12,
            temperature=temperature,
            top_k=50,
            top_p=0.95,
            generator=torch.Generator().manual_seed(3),
        )
        return [answer.tolist() for answer in drawn]

    together = answers(asked, 4096)
    assert answers(asked, 1) == together == answers(asked, 50)
    changed = [*asked[:5], asked[4]]
    assert answers(changed, 4096)[:5] == together[:5], "another prompt in the batch"
    assert answers(asked[:3], 4096) == together[:3], "a prompt's place and text are all that counts"
    if temperature:
        assert len({tuple(a) for a in answers([asked[0]] * 6, 4096)}) > 3, "each prompt draws its own numbers"


def test_an_answer_ends_before_the_end_token_and_where_the_context_ends(folder: Path) -> None:
    model = tiny()
    asked = prompts(5, 20)
    loop = plainly(model, asked[0], 10)
    end = loop[4]
    language = ModelLanguage(model, tokenizer=folder, template="alpaca", end=end, context=24)
    first, second = language.generate(asked, max_new_tokens=10)
    assert first.tolist() == loop[: loop.index(end)]
    assert second.tolist() == plainly(model, asked[1], 4), "20 tokens of a context of 24"
    (full,) = language.generate(prompts(24), max_new_tokens=3)
    assert full.tolist() == []
    with pytest.raises(ConfigError, match=r"longer than the model's context(.|\n)*25 tokens(.|\n)*24"):
        language.generate(prompts(25), max_new_tokens=3)
    assert language.generate([], max_new_tokens=3) == []


def test_gpt2_writes_to_the_end_of_its_learnt_positions(folder: Path) -> None:
    """A prompt that is done must not run past the table of positions while another goes on."""
    model = tiny("gpt2", context=24)
    long, short = language_of(model, folder).generate(prompts(22, 2), max_new_tokens=22)
    assert len(long) <= 2 and len(short) <= 22
    assert short.tolist() == plainly(model, prompts(22, 2)[1], 22)[: len(short)]


def test_nothing_else_is_touched(folder: Path) -> None:
    model = tiny()
    model.train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    language = language_of(model, folder)
    language.generate(prompts(3, 4), max_new_tokens=4, temperature=1.0, generator=torch.Generator().manual_seed(0))
    language.next_log_probabilities(prompts(3), torch.tensor([1]))
    language.attention(prompts(3)[0], layer=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert model.config.use_cache is False and model.config._attn_implementation == "sdpa"
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def brute(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> list[float]:
    """Probabilities by the definition, one token after another."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: top_k or len(logits)]
    weights = {i: torch.tensor(logits[i] / temperature, dtype=torch.float64).exp().item() for i in ranked}
    total, kept, mass = sum(weights.values()), {}, 0.0
    for i in ranked:
        if mass >= top_p:
            break
        kept[i] = weights[i] / total
        mass += kept[i]
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(logits))]


@given(
    st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.75, 1.0, 3.0]), min_size=1, max_size=8),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0.05, 0.6, 0.95, 1.0]),
)
def test_probabilities_of_a_draw(logits, temperature, top_k, top_p):
    found = Sampling(temperature, top_k, top_p).probabilities(torch.tensor([logits]))[0]
    assert found.tolist() == pytest.approx(brute(logits, temperature, top_k, top_p), abs=1e-9)


def test_draws_follow_the_probabilities(folder: Path) -> None:
    model, (asked,) = tiny(), prompts(6)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=asked[None]).logits[0, -1]
    wanted = Sampling(0.7, 4, 1.0).probabilities(logits[None])[0]
    drawn = language_of(model, folder).generate(
        [asked] * 2000, max_new_tokens=1, temperature=0.7, top_k=4, generator=torch.Generator().manual_seed(0)
    )
    counts = Counter(int(answer[0]) for answer in drawn if len(answer))
    assert set(counts) <= set(wanted.nonzero()[:, 0].tolist())
    for token, count in counts.items():
        p = float(wanted[token])
        assert abs(count - 2000 * p) < 4 * (2000 * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature divides"),
        ({"temperature": 1.0, "top_k": 0}, "top_k counts"),
        ({"temperature": 1.0, "top_p": 0.0}, "0 < top_p <= 1"),
    ],
)
def test_settings_of_a_draw_are_checked(setting: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        language_of(tiny(), folder).generate(
            prompts(3), max_new_tokens=1, generator=torch.Generator().manual_seed(0), **setting
        )


# ---- next tokens and attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_tokens_of_a_batch_are_those_of_one_text(architecture: str, folder: Path) -> None:
    model, asked = tiny(architecture), prompts(*LENGTHS)
    choices = torch.tensor([7, 0, 100])
    found = language_of(model, folder, tokens=40).next_log_probabilities(asked, choices)
    model.eval()
    with torch.no_grad():
        alone = [model(input_ids=p[None]).logits[0, -1].double().log_softmax(-1)[choices] for p in asked]
    assert found.dtype == torch.float64 and found.shape == (len(asked), 3)
    torch.testing.assert_close(found, torch.stack(alone), atol=2e-6, rtol=0)


@pytest.mark.parametrize("before", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_is_what_the_model_itself_returns(architecture: str, before: str, folder: Path) -> None:
    model, (asked,) = tiny(architecture, attention=before), prompts(20)
    language = language_of(model, folder)
    plain = tiny(architecture, attention="eager").eval()
    with torch.no_grad():
        whole = plain(input_ids=asked[None], output_attentions=True).attentions
    for layer in range(language.layers):
        found = language.attention(asked, layer=layer)
        torch.testing.assert_close(found, whole[layer][0].sum(0), atol=1e-6, rtol=0)
        assert found.triu(1).abs().max() == 0
        torch.testing.assert_close(found.sum(1), torch.full((20,), 4.0), atol=1e-5, rtol=0)
    assert model.config._attn_implementation == before


def test_layers_after_the_one_asked_for_are_not_run(folder: Path) -> None:
    model, run = tiny(), []
    for k, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda module, args, k=k: run.append(k))
    language_of(model, folder).attention(prompts(4)[0], layer=1)
    assert run == [0, 1]


def test_the_attention_is_put_back_after_an_error(folder: Path) -> None:
    model = tiny()

    def break_(module: nn.Module, args: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[0].register_forward_pre_hook(break_)
    with pytest.raises(RuntimeError, match="out of memory"):
        language_of(model, folder).attention(prompts(4)[0], layer=1)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks for m in model.modules())


class Blind(nn.Module):
    """A layer that returns what it is given, and never any weights."""

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Tensor:
        return hidden_states


def test_layers_that_are_not_there_and_models_without_weights_are_refused(folder: Path) -> None:
    model = tiny()
    language = language_of(model, folder)
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=rf"no such layer(.|\n)*layer={layer}(.|\n)*0 to 2"):
            language.attention(prompts(4)[0], layer=layer)
    for k in range(3):
        blind = Blind()
        blind.attention_type = "full_attention"
        model.model.layers[k] = blind
    with pytest.raises(ConfigError, match=r"returns no attention weights(.|\n)*model.attn_implementation=eager"):
        attention_weights(model, prompts(4)[0], layer=1)
    model.model.layers = nn.ModuleList([blind])
    with pytest.raises(ConfigError, match=r"layers of this model cannot be found"):
        attention_weights(model, prompts(4)[0], layer=1)


def test_a_compiled_model_is_run_as_written(folder: Path) -> None:
    model, asked = tiny(), prompts(5, 9)
    language = language_of(model, folder)
    answers, attention = language.generate(asked, max_new_tokens=4), language.attention(asked[0], layer=1)
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model.compile(backend=backend)
    assert [a.tolist() for a in language.generate(asked, max_new_tokens=4)] == [a.tolist() for a in answers]
    assert torch.equal(language.attention(asked[0], layer=1), attention)
    assert compiled == []


# ---- ranks and costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_ranks_share_the_work_and_work_equally_often(world: int, count: int) -> None:
    """What each rank would give is gathered by hand: first the parts of all ranks, then the whole."""
    lengths = torch.tensor([5, 40, 8, 8, 3, 90, 21][:count])
    values = torch.arange(count) * 10 + 1
    given: list[list[Tensor]] = []
    for rank in range(world):
        seen: list[Tensor] = []
        ranked = Passes(tokens=50, rank=rank, world=world, gathered=lambda local: local.repeat(world))
        ranked.spread(lengths, lambda places, seen=seen: (seen.append(values[places]), values[places])[1])
        given.append(seen)
    assert len({len(seen) for seen in given}) == 1, "the same number of passes on every rank"
    assert all(len(a) == len(b) for parts in zip(*given, strict=True) for a, b in pairwise(parts))
    everyone = torch.cat([torch.cat(seen) for seen in given])
    passes = Passes(tokens=50, rank=0, world=world, gathered=lambda local: everyone)
    assert passes.spread(lengths, lambda places: values[places]).tolist() == values.tolist()


def test_all_that_is_read_and_written_is_charged(folder: Path) -> None:
    model, asked = tiny(), prompts(4, 9)
    charged: list[tuple[float, float]] = []

    def flops(context: int) -> float:
        return forward_flops(model, context)

    passes = Passes(charge=lambda tokens, flops: charged.append((tokens, flops)), flops=flops)
    language = ModelLanguage(model, tokenizer=folder, template="alpaca", end=0, context=CONTEXT, passes=passes)
    language.next_log_probabilities(asked, torch.tensor([1]))
    prefill = rows_flops(flops, torch.tensor([4, 9]))
    assert charged.pop() == (13.0, prefill)
    answers = language.generate(asked, max_new_tokens=3)
    tokens, cost = charged.pop()
    assert tokens == 13 + sum(map(len, answers))
    each = [flops(len(p) + j) for p, a in zip(asked, answers, strict=True) for j in range(1, len(a) + 1)]
    assert cost == pytest.approx(prefill + sum(each), rel=1e-12)
    language.attention(asked[0], layer=0)
    assert charged.pop() == (4.0, rows_flops(flops, torch.tensor([4])))


# ---- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_spans_say_which_characters_a_token_stands_for(kind: str, tmp_path: Path) -> None:
    tokenizer_at(tmp_path, kind)
    language = language_of(tiny(vocab=300), tmp_path)
    for text in TEXTS:
        tokens, spans = language.encode(text)
        assert language.decode(tokens) == text
        assert spans.shape == (len(tokens), 2) and spans.dtype == torch.int64
        covered = {i for start, stop in spans.tolist() for i in range(start, stop)}
        assert covered == set(range(len(text)))
        for (start, stop), token in zip(spans.tolist(), tokens, strict=True):
            piece, said = language.decode(token[None]), text[start:stop]
            assert piece == said or "\ufffd" in piece, "a part of a character, or the characters themselves"
    assert language.encode("").tokens.shape == (0,) and language.encode("").spans.shape == (0, 2)


def test_a_special_token_spelled_out_is_text(folder: Path) -> None:
    language = language_of(tiny(), folder)
    text = "a <|endoftext|> b"
    assert 0 not in language.encode(text).tokens and language.decode(language.encode(text).tokens) == text
    assert language.decode(torch.tensor([0, *language.encode("hi").tokens.tolist(), 0])) == "hi"
    assert (language.end, language.context, language.layers) == (0, CONTEXT, 3)


CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_tokenizer(folder: Path) -> Path:
    """A tokenizer whose turns end with another token than its texts."""
    tokenizer = tokenizer_at(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(str(folder))
    return folder


def sft_pool(folder: Path, template: str, **settings: Any) -> tuple[Pool, dict[str, dict[str, str]]]:
    """A pool of examples, and these by their ids."""
    words = ["", "say", "na\u00efve  ", "two\nlines", "<b>"]
    records = {
        f"e{i}": {"id": f"e{i}", "instruction": f"{words[i % 5]} {i}?", "output": f"{words[i % 4]} ok {i}"}
        for i in range(24)
    }
    file = folder / "examples.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
    tokenizer = {"kind": "hf", "path": str(chat_tokenizer(folder / "chat"))} if template == "chat" else {"kind": "bpe"}
    found = prepare(
        {
            "source": "jsonl",
            "format": "sft",
            "path": str(file),
            "seq_len": 256,
            "overlap": {"n": 0},
            "validation": {"fraction": 0.1},
            "sft": {"template": template},
            "tokenizer": tokenizer,
            **settings,
        },
        root=folder / "pools",
    )
    assert found is not None
    return Pool.open(found), records


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_answers_are_the_rows_of_the_pool(template: str, tmp_path: Path) -> None:
    pool, records = sft_pool(tmp_path, template)
    model = tiny(vocab=pool.vocab_size, context=256)
    language = language_of(model, pool.tokenizer_path, template=template)
    rows = torch.arange(pool.train.index.rows)
    assert len(rows) >= 15
    documents = pool.train.documents(rows).document.tolist()
    for row, document in zip(rows, documents, strict=True):
        record, found = records[pool.documents.ids[document]], pool.train.read(row[None])
        assert found.targets is not None
        example = language.answer(record["instruction"], record["output"])
        assert torch.equal(example.tokens, found.tokens[0]) and torch.equal(example.learnt, found.targets[0])
        prompt = language.prompt(record["instruction"])
        assert torch.equal(prompt, found.tokens[0][: len(prompt)])
        assert int(found.targets[0].nonzero()[0]) == len(prompt), "the answer begins right after it"


def test_an_answer_ends_where_the_chat_template_ends_it(tmp_path: Path) -> None:
    """The text's end token and the turn's are two; both end an answer."""
    folder = chat_tokenizer(tmp_path)
    special = load(folder).convert_tokens_to_ids("<|im_end|>")
    model, (asked,) = tiny(vocab=260), prompts(5)
    loop = plainly(model, asked, 6)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[[special, loop[3]]] = head[[loop[3], special]]  # what was said fourth is now the turn's end
    language = ModelLanguage(model, tokenizer=folder, template="chat", end=0, context=CONTEXT)
    assert 0 not in loop[:4]
    assert language.generate([asked], max_new_tokens=6)[0].tolist() == loop[: loop.index(loop[3])]


def test_an_answer_is_cut_as_a_row_is(folder: Path) -> None:
    language = language_of(tiny(context=200), folder)
    example = language.answer("q", "x" * 300)
    assert len(example.tokens) == len(example.learnt) == 201 and bool(example.learnt[-1])
