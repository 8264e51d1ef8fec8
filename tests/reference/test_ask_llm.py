"""Ask-LLM (arXiv 2402.09668): closed forms under known logits; words of several tokens against a pass for each."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.selection.topk import TopK
from regimen.signals.ask_llm import NO, QUESTION, YES, AskLlm, spellings
from regimen.training.language import ModelLanguage
from tests.reference.observations import seeing
from tests.support.languages import TEXTS, language_of, tiny, tokenizer_at
from tests.support.stub_language import Characters, Pairs

Y, N = ord("y"), ord("n")
LETTERS = {"yes_words": ("y",), "no_words": ("n",)}  # words of one token for the language of characters


def measured(language: Characters, texts: list[str], **settings: object) -> Tensor:
    signal = AskLlm(**{**LETTERS, **settings})
    return signal.measure(Pairs(language, [(text, "") for text in texts]), torch.arange(len(texts)))


@pytest.mark.parametrize("shift", [0.0, 7.5, -300.0])
def test_closed_form_of_both_probabilities(shift: float) -> None:
    """A constant that is added to all logits changes nothing."""
    said = {"good": (3.0, -1.0), "fair": (0.5, 0.25), "bad": (-2.0, 2.5)}

    def likes(text: str) -> dict[int, float]:
        yes, no = next(logits for word, logits in said.items() if word in text)
        return {t: shift + (yes if t == Y else no if t == N else 0.0) for t in range(256)}

    language = Characters(likes=likes)
    relative = measured(language, list(said), relative=True)
    assert relative.tolist() == pytest.approx([1 / (1 + math.exp(n - y)) for y, n in said.values()], rel=1e-12)
    raw = measured(language, list(said))
    others = 254.0  # tokens with logit 0
    exact = [math.exp(y) / (math.exp(y) + math.exp(n) + others) for y, n in said.values()]
    assert raw.tolist() == pytest.approx(exact, rel=1e-12)
    assert raw.argsort(descending=True).tolist() == relative.argsort(descending=True).tolist() == [0, 1, 2]
    for setting, plain in (({}, raw), ({"relative": True}, relative)):
        logs = measured(language, list(said), log=True, **setting)
        assert logs.exp().tolist() == pytest.approx(plain.tolist(), rel=1e-12)


def test_logarithms_tell_apart_what_rounds_to_one_or_nothing() -> None:
    language = Characters(
        likes=lambda text: {Y: 60.0 if "sure" in text else 50.0, N: -60.0 if "sure" in text else -50.0}
    )
    texts = ["sure", "unsettled"]
    assert measured(language, texts, relative=True).tolist() == [1.0, 1.0]
    first, second = measured(language, texts, relative=True, log=True).tolist()
    assert second < first < 0 and first == pytest.approx(-math.exp(-120))
    language.likes = lambda text: {N: 800.0 if "sure" in text else 790.0}
    assert measured(language, texts).tolist() == [0.0, 0.0]
    first, second = measured(language, texts, log=True).tolist()
    assert first == pytest.approx(-800, rel=1e-12) and second == pytest.approx(-790, rel=1e-12)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("template", [False, True])
def test_the_text_is_cut_and_the_question_is_whole(before: bool, template: bool) -> None:
    seen: list[str] = []

    def likes(text: str) -> dict[int, float]:
        seen.append(text)
        return {}

    text = "abcdefghij" * 30
    measured(Characters(likes=likes), [text, "short"], before=before, template=template)
    whole, short = seen
    assert text in whole and "short" in short
    room = len(whole) - 250  # of characters
    language = Characters(likes=likes, context=room + 1)  # BEGIN, or END before a text
    seen.clear()
    measured(language, [text, "short"], before=before, template=template)
    assert [len(seen[0]), seen[1]] == [room, short]
    assert seen[0] == whole.replace(text, text[:50]), "only the text has become shorter"
    assert QUESTION in seen[0] and (seen[0].index(QUESTION) < seen[0].index("abc")) is before
    seen.clear()
    measured(language, [text], before=before, template=template, max_tokens=7)
    assert seen == [whole.replace(text, text[:7])]
    measured(Characters(likes=likes, context=len(whole) - 300 + 2), [text], before=before, template=template)
    with pytest.raises(ConfigError, match=r"no room for a text(.|\n)*less than(.|\n)*shorten the signal's question"):
        measured(Characters(likes=likes, context=len(whole) - 300 + 1), [text], before=before, template=template)


def test_the_judge_is_another_model_where_one_is_named() -> None:
    judge = Pairs(Characters(likes=lambda text: {Y: 2.0}), [("a", "")])
    own = Pairs(Characters(), [("a", "")], others={"outputs/judge": judge})
    signal = AskLlm(model="outputs/judge", **LETTERS)
    found = signal.measure(own, torch.arange(1))
    assert found.item() == pytest.approx(math.exp(2) / (math.exp(2) + 255), rel=1e-12)
    assert AskLlm().models() == (None,) and signal.models() == ("outputs/judge",)
    assert AskLlm().measure(own, torch.arange(1)) < found


def test_a_spelling_that_begins_another_counts_for_both() -> None:
    language = Characters()
    assert spellings(language, ("yes", "yesterday", "y", "Yes")) == [tuple(map(ord, "Yes")), (Y,)]


# ---- a real model ------------------------------------------------------------------------------------------------


def probability(model: nn.Module, prompt: Tensor, word: Tensor) -> float:
    """Of the tokens of a word, one whole pass for each."""
    product, text = 1.0, prompt
    model.eval()
    with torch.no_grad():
        for token in word:
            product *= float(model(input_ids=text[None]).logits[0, -1].double().softmax(-1)[token])
            text = torch.cat([text, token[None]])
    return product


def rows(language: ModelLanguage, texts: list[str]) -> Pairs:
    return Pairs(language, [(text, "") for text in texts])


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_words_of_several_tokens_on_a_real_model(kind: str, tmp_path: Path) -> None:
    tokenizer_at(tmp_path, kind)
    model = tiny(vocab=300, context=400)
    language = language_of(model, tmp_path)
    signal = AskLlm(question="Good?", relative=True)
    found = signal.measure(rows(language, TEXTS), torch.arange(3))
    bar = "=" * 10
    for text, value in zip(TEXTS, found.tolist(), strict=True):
        tokens = language.encode(f"{bar}\n{text}\n{bar}\n\nGood?\n\nAnswer (yes or no):").tokens
        prompt = torch.cat([torch.tensor([language.end]), tokens])
        yes, no = (sum(probability(model, prompt, language.encode(w).tokens) for w in words) for words in (YES, NO))
        assert value == pytest.approx(yes / (yes + no), rel=1e-4)


def test_values_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    tokenizer_at(tmp_path)
    model = tiny(context=128)
    texts = [*TEXTS, "a" * 300, "", "b"]
    signal = AskLlm(question="Good?", log=True)
    together = signal.measure(rows(language_of(model, tmp_path), texts), torch.arange(6))
    alone = [signal.measure(rows(language_of(model, tmp_path, tokens=1), texts), torch.tensor([i])) for i in range(6)]
    assert AskLlm.by_row and bool(torch.isfinite(together).all())
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_surest_rows_are_kept(tmp_path: Path) -> None:
    tokenizer_at(tmp_path)
    signal = AskLlm(question="Good?", log=True)
    scores = signal.measure(rows(language_of(tiny(), tmp_path), TEXTS), torch.arange(3))
    chosen = TopK(by=signal, ratio=None, count=2).decide(None, seeing(scores, by=signal))
    assert chosen.tolist() == scores.argsort(descending=True)[:2].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"question": " "}, "asked nothing"),
        ({"max_tokens": 0}, "max_tokens counts"),
        ({"yes_words": []}, "not spelled(.|\n)*yes_words"),
        ({"no_words": ["no", ""]}, "not spelled(.|\n)*no_words"),
        ({"yes_words": ["yes", "no"]}, "share a spelling(.|\n)*no"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AskLlm(**settings)
    assert AskLlm(yes_words=["y"], no_words="n") == AskLlm(yes_words=("y",), no_words=("n",))
