"""Data Whisperer (arXiv 2505.12212): scores under known answers and attention, spans under real tokenizers."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from regimen.core.errors import ConfigError
from regimen.selection.topk import TopK
from regimen.signals.data_whisperer import DataWhisperer, final_number, same_number, weights
from regimen.signals.in_context import Pair, Prompt, demonstration, pairs_of, parsed, place_of, prompt_of
from regimen.signals.rouge import longest_common, rouge_l
from tests.reference.observations import seeing
from tests.support.languages import TEXTS, language_of, tiny, tokenizer_at
from tests.support.stub_language import Characters, Pairs

ROWS = [(f"what is r{i}?", f"row {i}") for i in range(12)]
TARGET = [(f"which is t{i}?", f"word{i} and {i}") for i in range(5)]


def right(text: str, *, only: float = 1.0) -> str:
    """Answers as the target set has them, of a part of the questions `only`, and wrong ones."""
    numbers = [int(n) for n in re.findall(r"which is t(\d+)\?", text)]
    given = [f"word{n} and {n}" if j < only * len(numbers) else "no idea" for j, n in enumerate(numbers)]
    return "\n".join(f"Answer {k}: {a}" for k, a in enumerate(given, start=1))


def shown(text: str) -> list[int]:
    """The rows that a prompt shows."""
    return [int(n) for n in re.findall(r"what is r(\d+)\?", text)]


def spans(text: str) -> list[tuple[int, int]]:
    """Where their texts lie in it."""
    found = [text.index(demonstration(Pair(*ROWS[i]))) for i in shown(text)]
    return [(at, at + len(demonstration(Pair(*ROWS[i])))) for at, i in zip(found, shown(text), strict=True)]


def measured(language: Characters, **settings: object) -> Tensor:
    signal = DataWhisperer(**{"shown": 3, "asked": 2, **settings})
    return signal.measure(Pairs(language, ROWS, TARGET), torch.arange(len(ROWS)))


# ---- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("only", "worth"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_even_attention_shares_the_worth_evenly(only: float, worth: float) -> None:
    """T1: every row gets f / d."""
    found = measured(Characters(says=lambda text: right(text, only=only)))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([worth / 3] * 12, rel=1e-12)


def test_all_attention_on_one_row_gives_it_all() -> None:
    """T2, and T3: whatever the attention is, the scores of a chunk sum to the mean worth of its answers."""

    def looks(text: str) -> Tensor:
        attention = torch.zeros(len(text), len(text))
        start, stop = max(zip(shown(text), spans(text), strict=True))[1]
        attention[:, start:stop] = 0.25
        return attention

    language = Characters(says=lambda text: right(text, only=0.5), looks=looks)
    found = measured(language)
    chunks = [shown(text) for text in language.asked]
    assert sorted(row for chunk in chunks for row in chunk) == list(range(12)) and chunks != [[0, 1, 2], [3, 4, 5]]
    for chunk in chunks:
        assert {row: found[row].item() for row in chunk} == {row: 0.5 * (row == max(chunk)) for row in chunk}


def drawn(text: str) -> Tensor:
    return torch.rand(
        len(text), len(text), generator=torch.Generator().manual_seed(len(text) + sum(shown(text)))
    ).tril()


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("count", [3, 5])
def test_scores_by_the_formula(rounds: int, count: int) -> None:
    """Any attention, d that does not divide the rows, several rounds: sums and counts as the paper's code has them."""

    def says(text: str) -> str:
        return "\n".join(f"Answer {k}: word{n} and" for k, n in enumerate(re.findall(r"which is t(\d)", text), start=1))

    language = Characters(says=says, looks=drawn)
    found = measured(language, shown=count, rounds=rounds)
    score, times = [0.0] * 12, [0] * 12
    for text in language.asked:
        attention, after = drawn(text).double(), spans(text)[-1][1]
        raw = [
            sum(float(attention[row, column]) for row in range(after, len(text)) for column in range(a, b))
            / ((b - a) * (len(text) - after))
            for a, b in spans(text)
        ]
        for number in re.findall(r"which is t(\d)", text):
            f = rouge_l(f"word{number} and", f"word{number} and {number}")
            assert f == pytest.approx(2 * 2 / 5)
            for row, w in zip(shown(text), raw, strict=True):
                score[row] += f * w / sum(raw)
                times[row] += 1
    assert found.tolist() == pytest.approx([s / t for s, t in zip(score, times, strict=True)], rel=1e-6)
    chunks = [shown(text) for text in language.asked]
    assert len(chunks) == rounds * -(-12 // count) and all(len(set(chunk)) == count for chunk in chunks)
    assert min(times) == 2 * rounds, "every row in every round"
    asked = [int(n) for text in language.asked for n in re.findall(r"which is t(\d)", text)]
    assert asked == [i % 5 for i in range(len(asked))], "the questions take turns"


def test_rounds_are_seeded_shuffles() -> None:
    def order(**settings: object) -> list[list[int]]:
        language = Characters(says=right)
        measured(language, **settings)
        return [shown(text) for text in language.asked]

    once, twice = order(), order(rounds=2)
    assert twice[:4] == once and twice[4:] != once and order() == once and order(seed=1) != once


def test_rows_that_help_come_first() -> None:
    """A model that answers well if one of two rows is shown: several rounds find both."""
    language = Characters(says=lambda text: right(text, only=float({2, 7} & set(shown(text)) != set())))
    found = measured(language, rounds=12)
    assert sorted(found.argsort(descending=True)[:2].tolist()) == [2, 7]
    signal = DataWhisperer()
    assert TopK(by=signal, ratio=None, count=2).decide(None, seeing(found, by=signal)).sort().values.tolist() == [2, 7]


def test_without_a_target_set_each_half_is_asked_about_the_other() -> None:
    language = Characters(
        says=lambda text: "\n".join(f"Answer {k}: row 1" for k in range(1, 1 + text.count("Task "))), looks=drawn
    )
    rows = [(f"r{i}?", f"row {i}") for i in range(13)]
    signal = DataWhisperer(shown=3, asked=4, questions="pool")
    found = signal.measure(Pairs(language, rows), torch.arange(13))
    assert bool((found > 0).all())
    halves = []
    for text in language.asked:
        before, after = text.split("Do these")
        halves.append((set(re.findall(r"r(\d+)\?", before)), set(re.findall(r"r(\d+)\?", after))))
        assert not halves[-1][0] & halves[-1][1], "no row is asked about itself"
    first = set.union(*(rows for rows, asked in halves[:2]))
    second = set.union(*(rows for rows, asked in halves[2:]))
    assert len(halves) == 5 and len(first) == 6 and len(second) == 7 and not first & second
    with pytest.raises(ConfigError, match="no target set"):
        DataWhisperer(shown=3).measure(Pairs(language, rows), torch.arange(13))
    with pytest.raises(ConfigError, match=r"fewer rows(.|\n)*5 rows, shown=3, questions=pool(.|\n)*6 rows or more"):
        signal.measure(Pairs(language, rows), torch.arange(5))


def test_the_layer_goes_by_the_depth() -> None:
    for depth, layer in ((1, 0), (2, 1), (5, 2), (32, 13), (28, 11)):
        language = Characters(says=right, layers=depth)
        measured(language)
        assert set(language.layers_asked) == {layer}
    language = Characters(says=right)
    measured(language, layer=4)
    assert set(language.layers_asked) == {4}
    with pytest.raises(ConfigError, match=r"no such layer(.|\n)*layer=5(.|\n)*0 to 4"):
        measured(language, layer=5)


def test_another_model_answers_where_one_is_named() -> None:
    other = Pairs(Characters(says=right), ROWS, TARGET)
    own = Pairs(Characters(), ROWS, TARGET, others={"outputs/judge": other})
    signal = DataWhisperer(model="outputs/judge", shown=3, asked=2)
    assert signal.measure(own, torch.arange(12)).tolist() == pytest.approx([1 / 3] * 12)
    assert signal.models() == ("outputs/judge",) and not own.language.asked and not DataWhisperer.by_row


# ---- what cannot be read -----------------------------------------------------------------------------------------


def test_a_chunk_that_cannot_be_read_is_asked_half() -> None:
    language = Characters(says=lambda text: right(text) if text.count("Task ") < 4 else "Answer 1: word0 and 0")
    found = measured(language, asked=4)
    assert found.tolist() == pytest.approx([1 / 3] * 12)
    assert [text.count("Task ") for text in language.asked] == [4] * 4 + [2] * 4


def test_a_chunk_that_cannot_be_read_twice_does_not_count() -> None:
    """In one round its rows are last; over several they have the mean of the others."""

    def says(text: str) -> str:
        return "I would rather not." if 4 in shown(text) else right(text)

    language = Characters(says=says)
    found = measured(language, asked=3)
    lost = next(chunk for chunk in map(shown, language.asked) if 4 in chunk)
    for row in range(12):
        assert found[row].item() == (-torch.inf if row in lost else pytest.approx(1 / 3))
    signal = DataWhisperer()
    kept = TopK(by=signal, ratio=None, count=9).decide(None, seeing(found, by=signal)).tolist()
    assert set(kept) == set(range(12)) - set(lost)
    several = measured(language, asked=3, rounds=12)
    assert several[4].item() == -torch.inf and several.isinf().sum() == 1
    assert several[several.isfinite()].tolist() == pytest.approx([1 / 3] * 11)


def test_a_model_that_never_answers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"answered no question(.|\n)*4 prompts of 3 examples and 3(.|\n)*lower the sig"
    ):
        measured(Characters(says=lambda text: "What?"), asked=3)
    assert measured(Characters(says=lambda text: "Unnumbered"), asked=1).tolist() == [0.0] * 12


def test_a_context_that_is_too_short_is_refused_before_anything_is_asked() -> None:
    language = Characters(says=right, context=800)
    with pytest.raises(ConfigError) as error:
        measured(language, max_new_tokens=500)
    length = int(re.findall(r"a prompt of (\d+) tokens", str(error.value))[0])
    assert re.search(
        r"shown=3, asked=2(.|\n)*max_new_tokens=500(.|\n)*800 tokens(.|\n)*lower the signal's shown", str(error.value)
    )
    assert not language.asked
    language.context = length + 500
    assert measured(language, max_new_tokens=500).tolist() == pytest.approx([1 / 3] * 12)
    language.context -= 1
    with pytest.raises(ConfigError, match="too short"):
        measured(language, max_new_tokens=500)


def test_rows_that_ask_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"asks nothing(.|\n)*dataset=sft_files"):
        DataWhisperer(shown=1).measure(Pairs(Characters(), [("", "packed text")], TARGET), torch.arange(1))
    with pytest.raises(ConfigError, match=r"fewer rows(.|\n)*12 rows, shown=13"):
        measured(Characters(), shown=13)
    with pytest.raises(ConfigError, match=r"has no number(.|\n)*'blue'(.|\n)*metric=rouge_l"):
        DataWhisperer(shown=1, metric="number").measure(Pairs(Characters(), ROWS, [("q", "blue")]), torch.arange(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shown": 0}, "shown=0"),
        ({"asked": 0}, "asked=0"),
        ({"rounds": 0}, "rounds=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_tokens": 0}, "max_tokens counts"),
        ({"metric": "bleu"}, "unknown metric(.|\n)*rouge_l, number"),
        ({"questions": "all"}, "unknown questions(.|\n)*target, pool"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataWhisperer(**settings)


def test_passes_count_what_is_read() -> None:
    assert DataWhisperer(shown=10, asked=5, rounds=2).passes() == 2 * 2 * 15 / 10


# ---- prompts and answers -----------------------------------------------------------------------------------------

PIECES = [
    Pair("Add 1 to 10,000.", "#### 10,001."),
    Pair("na\u00efve caf\u00e9 \U0001f600\n", "\u6f22\u5b57"),
    Pair("x", " y "),
]


def greedy_tokenizer(folder: Path) -> Path:
    """Its tokens reach over words, line ends and marks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    texts = [f"Example {k}\n{p.question}\nAnswer: {p.answer}\n\nExample {k + 1}\n" for p in PIECES for k in range(9)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["bytes", "bpe", "greedy"])
def test_spans_are_the_texts_that_are_shown(kind: str, tmp_path: Path) -> None:
    """T4, with marks of one and of several bytes. A token that reaches over a border is in one text, and whole."""
    if kind == "greedy":
        greedy_tokenizer(tmp_path)
    else:
        tokenizer_at(tmp_path, kind)
    language = language_of(tiny(vocab=400, layers=1), tmp_path)
    prompt = prompt_of(language, PIECES, ["one", "two?"], instruction="See:")
    said = language.decode(prompt.tokens)
    assert torch.equal(prompt.tokens, language.prompt(said.split("### Instruction\n")[1].split("\n\n### Response")[0]))
    last = 0
    for pair, (start, stop) in zip(PIECES, prompt.shown.tolist(), strict=True):
        text = language.decode(prompt.tokens[start:stop])
        assert start >= last and demonstration(pair) in text
        assert text == demonstration(pair) if kind != "greedy" else len(text) < len(demonstration(pair)) + 24
        last = stop
    assert "Task 2\ntwo?" in language.decode(prompt.tokens[last:])
    if kind == "greedy":
        wider = [
            language.decode(prompt.tokens[a:b]) != demonstration(p)
            for p, (a, b) in zip(PIECES, prompt.shown, strict=True)
        ]
        assert any(wider), "the tokenizer is no test of borders"


def test_a_part_is_found_at_the_begin_of_a_token() -> None:
    whole = torch.tensor([256, 1, 0, 2, 1, 3])
    assert place_of(torch.tensor([1, 3]), whole) == 4 and place_of(torch.tensor([256, 1]), whole) == 0
    with pytest.raises(ConfigError, match=r"template changes the text(.|\n)*template=alpaca"):
        place_of(torch.tensor([1 << 56]), torch.tensor([1, 2]))


def test_questions_lose_the_template_and_their_end() -> None:
    language = Characters()
    rows = [language.answer("what?", " this "), language.answer("a long question", "that")]
    assert pairs_of(language, rows, max_tokens=None) == [("what?", "this"), ("a long question", "that")]
    assert pairs_of(language, rows, max_tokens=6) == [("what?", "this"), ("a long", "that")]
    turns = torch.cat([language.prompt("hi"), language.encode("hello<again>bye").tokens])
    learnt = torch.tensor([False] * 5 + [True] * 5 + [False] * 7 + [True] * 3)  # BEGIN <hi> hello <again> bye
    ((question, answer),) = pairs_of(language, [(turns, learnt)], max_tokens=None)
    assert (question, answer) == ("hi>hello<again", "bye"), "the last answer, after all that was said"


@pytest.mark.parametrize(
    ("said", "count", "answers"),
    [
        ("Answer 1: a\nAnswer 2: b", 2, ["a", "b"]),
        ("Sure.\n**answer 1:** a\nmore\n\n Answer 2) b ", 2, ["a\nmore", "b"]),
        ("1. a\n2. b\n3. c", 2, ["a", "b"]),
        ("Answer 1: 1. first 2. second\nAnswer 2: b", 2, ["1. first 2. second", "b"]),
        ("Answer 1: a\nAnswer 3: c", 3, ["a\nAnswer 3: c"]),
        ("Answer 1:\nAnswer 2: b", 2, []),
        ("Answer 2: b", 2, []),
        ("Answer 10: b", 1, ["Answer 10: b"]),
        ("1.5 litres", 1, ["1.5 litres"]),
        ("just so", 1, ["just so"]),
        ("just so", 2, []),
        ("", 1, [""]),
        ("", 2, []),
    ],
)
def test_numbered_answers(said: str, count: int, answers: list[str]) -> None:
    assert parsed(said, count) == answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", "7"),
        ("it is 1,234.50 or 8 #### -12,000 apples for 3", "-12000"),
        ("first 5, then 2.50", "2.5"),
        ("none", None),
        ("#### none 5", "5"),
        ("5 ####", None),
    ],
)
def test_final_numbers(text: str, number: str | None) -> None:
    found = final_number(text)
    assert found is None if number is None else str(found.normalize() + 0) == number or found == float(number)
    assert same_number(text, "#### 7") == float(number == "7") and same_number("7.0", "7") == 1.0


@cache
def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return common(a[:-1], b[:-1]) + 1
    return max(common(a[:-1], b), common(a, b[:-1]))


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_longest_common_subsequence(a, b):
    assert longest_common(a, b) == common(tuple(a), tuple(b))


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat sat") == 1.0
    assert rouge_l("The cat, sat!", "the dog sat") == pytest.approx(2 / 3)  # 2 common words of 3 and 3
    assert rouge_l("sat the", "the cat sat") == pytest.approx(2 * 1 / 5)
    assert rouge_l("", "a") == rouge_l("?", "!") == rouge_l("answers", "answer") == 0.0
    assert rouge_l("\u6f22\u5b57 na\u00efve", "\u6f22\u5b57") == pytest.approx(2 / 3)


def test_weights_are_the_mean_attention_after_the_examples() -> None:
    attention = torch.arange(36, dtype=torch.float32).reshape(6, 6)
    prompt = Prompt(torch.zeros(6), torch.tensor([[0, 1], [2, 4]]))
    means = [(24 + 30) / 2, (26 + 27 + 32 + 33) / 4]
    assert weights(attention, prompt).tolist() == pytest.approx([m / sum(means) for m in means])


# ---- a real model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_real_model_end_to_end(attention: str, tmp_path: Path) -> None:
    """T5: padding changes nothing. With weights of the attention that the model itself returns."""
    tokenizer_at(tmp_path)
    rng = random.Random(0)
    rows = [("say " * rng.randint(1, 5), "x" * rng.randint(1, 9)) for _ in range(8)]
    signal = DataWhisperer(shown=2, asked=1, rounds=2, max_new_tokens=6, layer=1)

    def scores(tokens: int) -> Tensor:
        language = language_of(tiny(context=600, attention=attention), tmp_path, tokens=tokens)
        told = [
            (q, language.decode(language.generate([language.prompt(q)], max_new_tokens=4)[0]) or "a") for q in TEXTS
        ]
        return signal.measure(Pairs(language, rows, told), torch.arange(8))

    together = scores(10_000)
    torch.testing.assert_close(together, scores(1), atol=1e-6, rtol=0)
    assert together.shape == (8,) and bool(torch.isfinite(together).all())
