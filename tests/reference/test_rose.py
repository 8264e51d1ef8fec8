"""ROSE (arXiv 2412.00631): the gradient of the printed preference loss, signs, ties, and what changes no cosine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Checkpoint, Sketch
from regimen.signals.influence import Influence
from regimen.signals.pairs import read_pairs
from regimen.signals.preference_influence import PreferenceInfluence
from regimen.signals.preference_influence import _rows as rows_of
from tests.support.exact_meter import ExactMeter, State, TinyLM, flat_gradient, summed_loss, tokens_of
from tests.support.languages import language_of, tiny, tokenizer_at

V = 6  # letters a to e, and the end
PAIRS = [
    {"prompt": "ab", "chosen": "cd", "rejected": "e", "subtask": "talk"},
    {"prompt": "c", "chosen": "a", "rejected": "bda", "subtask": "talk"},
    {"prompt": "dd", "chosen": "eb", "rejected": "ca", "subtask": "code"},
]
WHOLE = Sketch(kind="whole")


def meter() -> ExactMeter:
    models = {name: State(TinyLM(V, width=3, seed=seed)) for seed, name in enumerate(("now", "a", "b", "base"))}
    return ExactMeter(
        models["now"],
        {"pool": [_answer("abc", "d"), _answer("e", "ab"), _answer("cb", "eda")]},
        V,
        others=models,
        runs={"warmup": [Checkpoint("a", 0.25), Checkpoint("b", 0.75)]},
    )


def _answer(prompt: str, answer: str):
    return ExactMeter(State(TinyLM(V)), {}, V).language.answer(prompt, answer)


def written(folder: Path, pairs: list[dict[str, str]]) -> str:
    file = folder / f"pairs-{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(file)


def measured(signal: PreferenceInfluence, at: ExactMeter | None = None) -> Tensor:
    at = at or meter()
    return signal.measure(at, torch.arange(at.index.rows))


def surprise(model: TinyLM, prompt: str, answer: str) -> Tensor:
    """The summed loss of an answer and the end of the text, token by token."""
    tokens = torch.cat([tokens_of(prompt + answer), torch.tensor([V - 1])])
    logs = model(tokens).log_softmax(-1)
    return -sum(logs[t - 1, tokens[t]] for t in range(len(prompt), len(tokens)))


def printed_loss(model: TinyLM, reference: TinyLM, pair: dict[str, str], beta: float) -> Tensor:
    margin = 0.0
    for sign, name in ((1, "chosen"), (-1, "rejected")):
        frozen = surprise(reference, pair["prompt"], pair[name]).detach()
        margin = margin + sign * beta * (frozen - surprise(model, pair["prompt"], pair[name]))
    return -torch.nn.functional.logsigmoid(margin)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_is_the_gradient_of_the_printed_loss(beta, tmp_path):
    """T1: autograd of -log sigmoid(beta * margin) is the closed form made of two plain gradients."""
    at = meter()
    signal = PreferenceInfluence(path=written(tmp_path, PAIRS), beta=beta, reference="base", sketch=WHOLE)
    rows = [at.language.answer(p["prompt"], p[name]) for name in ("chosen", "rejected") for p in PAIRS]
    found = signal.steepness(at, rows)[:, None] * signal.differences(at, rows)
    for i, pair in enumerate(PAIRS):
        loss = printed_loss(at.state.model, at.others["base"].model, pair, beta)
        wanted = flat_gradient(at.state.model, loss)
        assert torch.allclose(found[i], wanted, atol=1e-6)


@pytest.mark.parametrize("val_agg", ["mean_of_cos", "cos_of_mean"])
def test_values_over_checkpoints(val_agg, tmp_path):
    """Every subtask is a column, in the order of names: cosines with its pairs, or with their mean gradient."""
    at = meter()
    signal = PreferenceInfluence(
        path=written(tmp_path, PAIRS), run="warmup", beta=2.0, reference="base", val_agg=val_agg, sketch=WHOLE
    )
    wanted = torch.zeros(3, 2)
    for name, weight in (("a", 0.25), ("b", 0.75)):
        model = at.others[name].model
        rows = [flat_gradient(model, summed_loss(model, row) / row.learnt.sum()) for row in at.rows["pool"]]
        for column, places in enumerate(([2], [0, 1])):  # code, talk
            losses = [printed_loss(model, at.others["base"].model, PAIRS[p], 2.0) for p in places]
            gradients = [flat_gradient(model, loss) for loss in losses]
            if val_agg == "cos_of_mean":
                gradients = [torch.stack(gradients).mean(0)]
            for i, row in enumerate(rows):
                cosines = [torch.cosine_similarity(row, g, dim=0) for g in gradients]
                wanted[i, column] += weight * float(sum(cosines) / len(cosines))
    assert torch.allclose(measured(signal), wanted, atol=1e-6)


def test_swapped_answers_flip_all_signs(tmp_path):
    """T2: where every checkpoint is its own reference."""
    swapped = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]
    for val_agg in ("mean_of_cos", "cos_of_mean"):
        signal = PreferenceInfluence(path=written(tmp_path, PAIRS), run="warmup", val_agg=val_agg, sketch=WHOLE)
        values = measured(signal)
        assert float(values.abs().min()) > 1e-3
        assert torch.allclose(measured(replace(signal, path=written(tmp_path, swapped))), -values, atol=1e-6)


def test_equal_answers_have_no_influence(tmp_path):
    """T3: exactly 0, not the direction of a rounding error."""
    alike = [{"prompt": "ab", "chosen": "cd", "rejected": "cd"}]
    for val_agg in ("mean_of_cos", "cos_of_mean"):
        signal = PreferenceInfluence(path=written(tmp_path, alike), run="warmup", val_agg=val_agg, sketch=WHOLE)
        assert torch.equal(measured(signal), torch.zeros(3, 1))


def test_beta_does_not_count_where_the_model_is_its_own_reference(tmp_path):
    """T4."""
    for val_agg in ("mean_of_cos", "cos_of_mean"):
        signal = PreferenceInfluence(path=written(tmp_path, PAIRS), run="warmup", val_agg=val_agg, sketch=WHOLE)
        assert torch.allclose(measured(replace(signal, beta=7.0)), measured(signal), atol=1e-6)


def test_cosines_with_single_pairs_need_no_reference(tmp_path):
    """The factor of a pair is positive: it counts in a mean of gradients alone, and is measured for that alone."""
    signal = PreferenceInfluence(path=written(tmp_path, PAIRS), run="warmup", beta=5.0, sketch=WHOLE)
    against = replace(signal, reference="base")
    assert against.models() == ("warmup",)
    assert torch.equal(measured(against), measured(signal))
    means = replace(against, val_agg="cos_of_mean")
    assert means.models() == ("warmup", "base")
    assert float((measured(means) - measured(replace(means, reference=None))).abs().max()) > 1e-3


def test_costs_as_less(tmp_path):
    path = written(tmp_path, PAIRS)
    assert PreferenceInfluence(path=path, run="warmup").passes() == Influence(run="warmup").passes()


def test_what_is_no_pair(tmp_path):
    with pytest.raises(ConfigError, match="no file of preference pairs"):
        PreferenceInfluence(path=str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="beta"):
        PreferenceInfluence(path=written(tmp_path, PAIRS), beta=0.0)
    (tmp_path / "late.jsonl").write_text('{"prompt": "a", "chosen": "b"}')
    with pytest.raises(ConfigError, match="line 1 .* is no pair"):
        PreferenceInfluence(path=str(tmp_path / "late.jsonl"))  # not after a warm-up
    for text, match in (("{", "line 1 .* is not JSON"), ('\n{"prompt": "a"}', "line 2 .* is no pair"), ("", "no pref")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_pairs(tmp_path / "bad.jsonl")
    assert read_pairs(Path(written(tmp_path, PAIRS)))[2].subtask == "code"


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path):
    """It would count as a pair of equal answers."""
    folder = tmp_path / "tokenizer"
    tokenizer_at(folder)
    at = SimpleNamespace(language=language_of(tiny(context=200), folder))
    fine = {"prompt": "p", "chosen": "c" * 400, "rejected": "r"}
    long = {"prompt": "p" * 300, "chosen": "c", "rejected": "r"}
    pairs = read_pairs(Path(written(tmp_path, [fine, long])))
    assert all(bool(row.learnt.any()) for row in rows_of(pairs[:1], at))
    with pytest.raises(ConfigError, match=r"no room(.|\n)*pair 2(.|\n)*200 tokens"):
        rows_of(pairs, at)
