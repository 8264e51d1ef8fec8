"""NICE (ICML 2025): the policy gradient of a bandit, rewards that say nothing, and rules that reward answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from regimen.core.errors import ConfigError
from regimen.core.measuring import Checkpoint, Example, Sketch
from regimen.core.seeding import generator
from regimen.signals import policy_influence
from regimen.signals.influence import Influence
from regimen.signals.policy_influence import PolicyInfluence, Prompt, answered, centred, prompt_of
from regimen.signals.rewards import exact, reward_of, rouge
from tests.support.exact_meter import ExactMeter, State, TinyLM, flat_gradient, summed_loss, tokens_of

V = 5  # letters a to d, and the end
REWARDS = {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.0, "": 0.7}  # the end alone is an empty answer
HERE = "tests.reference.test_nice"
PLAIN = {"temperature": 1.0, "top_k": None, "top_p": 1.0}


def by_letter(prompt: str, answer: str, reference: str) -> float:
    return REWARDS[answer[:1]]


def nothing(prompt: str, answer: str, reference: str) -> float:
    return 0.0


def always(prompt: str, answer: str, reference: str) -> float:
    return 0.3


def too_much(prompt: str, answer: str, reference: str) -> float:
    return 1.5


def equals(prompt: str, answer: str, reference: str) -> float:
    return float((prompt, answer, reference) == ("a", "", "bc"))


class Bandit(nn.Module):
    """The same logits (V,) after any token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.5, -0.3, 0.0, 1.0, -0.5], dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(len(tokens), V)


def row(prompt: str, answer: str) -> Example:
    return ExactMeter(State(TinyLM(V)), {}, V).language.answer(prompt, answer)


def meter(model: nn.Module | None = None) -> ExactMeter:
    others = {name: State(TinyLM(V, width=3, seed=seed)) for seed, name in enumerate("xy")}
    return ExactMeter(
        State(model or TinyLM(V, width=3, seed=7)),
        {"pool": [row("ab", "c"), row("d", "ab"), row("ca", "d")]},
        V,
        targets={"one": [row("a", "bc"), row("db", "a")], "two": [row("c", "d")]},
        others=others,
        runs={"warmup": [Checkpoint("x", 0.5), Checkpoint("y", 0.5)]},
    )


def signal(reward: str = f"{HERE}.by_letter", *, samples: int = 6, seed: int = 0) -> PolicyInfluence:
    sketch = Sketch(kind="whole")
    return PolicyInfluence(reward=reward, samples=samples, max_new_tokens=3, seed=seed, sketch=sketch, **PLAIN)


def measured(of: PolicyInfluence | Influence, at: ExactMeter | None = None) -> Tensor:
    at = at or meter()
    return of.measure(at, torch.arange(at.index.rows))


def bandit_estimate(of: PolicyInfluence, model: Bandit) -> tuple[Tensor, Tensor]:
    at = meter(model)
    prompt = Prompt(tokens_of("a"), tokens_of("b"))
    gradients, rewards = of.estimates(at, [prompt], generator("draw", of.seed))
    return gradients[0], rewards[0]


@pytest.mark.parametrize("baseline", ["none", "mean"])
def test_bandit(baseline):
    """E[G] is minus the gradient of the expected reward, and each G the average over the answers that were drawn."""
    model, samples = Bandit(), 1000
    of = replace(signal(samples=samples), max_new_tokens=1, baseline=baseline)
    found, drawn = bandit_estimate(of, model)
    reward = torch.tensor(list(REWARDS.values()), dtype=torch.float64)
    likely = model.logits.softmax(0)
    wanted = flat_gradient(model, -(likely * reward).sum())
    action = torch.stack([(reward == value).nonzero()[0, 0] for value in drawn])  # (K,), rewards are distinct
    shift = drawn.mean() if baseline == "mean" else 0.0
    terms = (drawn - shift)[:, None] * (likely.detach() - torch.eye(V)[action])  # (K, V)
    assert torch.allclose(found.double(), terms.mean(0), atol=1e-5)
    assert bool(((found - wanted).abs() < 4 * terms.std(0) / samples**0.5).all())
    assert float(wanted.abs().max()) > 10 * float(terms.std(0).max()) / samples**0.5  # the bound says something


def test_a_reward_that_never_changes_has_no_expected_gradient():
    model = Bandit()
    of = replace(signal(f"{HERE}.always", samples=1000), max_new_tokens=1)
    found, _ = bandit_estimate(of, model)
    assert float(found.abs().max()) < 4 * 0.3 * 0.5 / 1000**0.5
    exactly, _ = bandit_estimate(replace(of, baseline="mean"), model)
    assert torch.equal(exactly, torch.zeros(V))


def test_no_reward_means_no_influence():
    for of in (signal(f"{HERE}.nothing"), replace(signal(f"{HERE}.always"), baseline="mean")):
        for val_agg in ("mean_of_cos", "cos_of_mean"):
            assert torch.equal(measured(replace(of, run="warmup", val_agg=val_agg)), torch.zeros(3, 3))


def test_a_row_without_rewards_falls_back_to_its_own_answer():
    of = replace(signal(f"{HERE}.nothing"), run="warmup", fallback="reference")
    assert torch.allclose(measured(of), measured(Influence(run="warmup", sketch=of.sketch)), atol=1e-6)
    paid = replace(signal(), run="warmup")
    assert torch.equal(measured(replace(paid, fallback="reference")), measured(paid))


def test_values_over_checkpoints(monkeypatch):
    """Cosines with the policy gradients of every checkpoint, target rows in columns."""
    at, of = meter(), replace(signal(), run="warmup")
    prompts = [prompt_of(example) for example in at.target.examples(torch.arange(3))]
    wanted = torch.zeros(3, 3)
    for path in "xy":
        under = at.under(path)
        gradients, rewards = of.estimates(under, prompts, generator("answers", 0))
        assert bool((rewards > 0).any(1).all())
        rows = [flat_gradient(under.state.model, summed_loss(under.state.model, r)).float() for r in at.rows["pool"]]
        wanted += 0.5 * torch.cosine_similarity(torch.stack(rows)[:, None], gradients[None], dim=2)
    assert torch.allclose(measured(of), wanted, atol=1e-6)
    monkeypatch.setattr(policy_influence, "_ROWS", 6)  # one prompt at a time
    assert torch.allclose(measured(of), wanted, atol=1e-6)
    means = measured(replace(of, val_agg="cos_of_mean"))
    assert torch.equal(means[:, 0], means[:, 1])


def test_the_draw_depends_on_the_seed_alone():
    assert torch.equal(measured(signal()), measured(signal()))
    assert not torch.allclose(measured(signal()), measured(signal(seed=1)), atol=1e-3)


def test_the_end_is_part_of_an_answer_that_ended():
    """Answers of one letter out of room for two ended; those that filled the room did not."""
    at = meter(Bandit())
    pairs = [(Prompt(tokens_of("a"), tokens_of("b")), tokens_of(text)) for text in ("", "c", "cd")]
    rows = replace(signal(), max_new_tokens=2)._written(at.language, pairs)
    assert [r.tokens.tolist() for r in rows] == [[0, 4], [0, 2, 4], [0, 2, 3]]
    assert [r.learnt.tolist() for r in rows] == [[False, True], [False, True, True], [False, True, True]]


def test_prompts_of_rows():
    learnt = torch.tensor([False, False, True, True, False, True])
    found = prompt_of(Example(torch.arange(6), learnt))
    assert (found.tokens.tolist(), found.reference.tolist()) == ([0, 1], [2, 3])
    found = prompt_of(answered(tokens_of("ab"), tokens_of("cd")))
    assert (found.tokens.tolist(), found.reference.tolist()) == ([0, 1], [2, 3])


def test_rewards_less_their_mean():
    rewards = torch.tensor([[0.1] * 7, [0.0, 1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    assert torch.equal(centred(rewards)[0], torch.zeros(7, dtype=torch.float64))
    assert torch.allclose(centred(rewards)[1], rewards[1] - 1 / 7)


def test_reward_sees_the_texts():
    """The prompt as it was asked, the answer, and the reference without the end of the text."""
    at = meter(Bandit())
    with torch.no_grad():
        at.state.model.logits[V - 1] = 50.0  # every answer is empty
    prompts = [prompt_of(example) for example in at.target.examples(torch.tensor([0, 1]))]
    _, rewards = signal(f"{HERE}.equals").estimates(at, prompts, generator("draw"))
    assert rewards.tolist() == [[1.0] * 6, [0.0] * 6]


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("so it is 1,072.0.", "72 + 1000\n#### 1072", 1),
        ("72", "#### 71", 0),
        ("first 71, then 72", "71", 0),
        ("no number", "5", 0),
        (" Paris. ", "paris", 1),
        ("Paris, France", "Paris", 0),
        ("it is 5 apples", "5 apples", 0),
    ],
)
def test_exact(answer, reference, value):
    assert exact("", answer, reference) == value


def test_rouge():
    assert rouge("", "the cat sat", "The cat sat.") == 1
    assert rouge("", "x", "y") == 0
    assert rouge("", "a b", "b a c") == pytest.approx(2 / 5)


def test_what_cannot_be_rewarded():
    assert reward_of("exact") is exact and reward_of(f"{HERE}.always")("", "", "") == 0.3
    for name in ("accuracy", "regimen.nowhere.rule", f"{HERE}.missing"):
        with pytest.raises(ConfigError, match="unknown reward"):
            PolicyInfluence(reward=name)
    with pytest.raises(ConfigError, match="no function"):
        PolicyInfluence(reward=f"{HERE}.V")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        measured(signal(f"{HERE}.too_much"))
    for wrong in ({"baseline": "median"}, {"fallback": "best"}, {"val_agg": "max"}, {"temperature": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PolicyInfluence(**wrong)
    with pytest.raises(ConfigError, match="samples of 2 or more"):
        PolicyInfluence(samples=1, baseline="mean")
    with pytest.raises(ConfigError, match="no target set"):
        measured(signal(), replace(meter(), targets=None))


def test_rows_step_as_adam_does_and_rewards_are_plain_gradients():
    """The train side is LESS: Adam's direction for rows, which DataFlex computes and then drops."""
    size = sum(p.numel() for p in TinyLM(V, width=3).parameters())
    first = 0.1 * torch.randn(size, generator=generator(1), dtype=torch.float64)
    at = replace(meter(), state=State(TinyLM(V, width=3, seed=7), first, first**2 + 0.01))
    of = replace(signal(), sketch=Sketch(kind="whole", adam="inside"))
    wanted, _ = of.estimates(at, [prompt_of(r) for r in at.target.examples(torch.arange(3))], generator("answers", 0))
    steps = at.sketches(torch.arange(3), of.sketch)
    expected = torch.cosine_similarity(steps[:, None], wanted[None], dim=2)
    assert torch.allclose(measured(of, at), expected, atol=1e-6)
    assert float((measured(replace(of, sketch=Sketch(kind="whole")), at) - expected).abs().max()) > 0.01
