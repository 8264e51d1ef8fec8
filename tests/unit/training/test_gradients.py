"""Gradients of domains against plain backward passes, one domain at a time, and that training does not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.data.pool import Rows
from regimen.training.cost import CostClock
from regimen.training.gradients import DomainGradients
from regimen.training.module import LanguageModule, Objective
from regimen.training.sweep import Sweeper

VOCABULARY, ROWS = 40, 6  # rows of each domain
BATCH = torch.tensor([0, 1, 3, 13, 12, 17, 16, 12])  # rows of a and c, one twice; none of b


class RaggedTable:
    """Random rows of 0 to 10 target tokens in memory; domains a, b and c have six each, and row 3 has no target."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.tokens = torch.randint(0, VOCABULARY, (3 * ROWS, 11))
        self.lengths = torch.randint(2, 12, (3 * ROWS,))
        self.lengths[3] = 1
        offsets = torch.tensor([0, ROWS, 2 * ROWS, 3 * ROWS])
        self.index = PoolIndex(domains=("a", "b", "c"), offsets=offsets, target_tokens=(self.lengths - 1).int())

    def read(self, ids: Tensor, *, positions: bool = False) -> Rows:
        lengths = self.lengths[ids]
        return Rows(self.tokens[ids, : int(lengths.max())], lengths, None)


def qwen(**changes: object) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=16, **shape, **changes)
    return Qwen2ForCausalLM(config).train()


def gpt2() -> GPT2LMHeadModel:
    """Tied, with dropout on embeddings, attention and residuals."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.4)
    return GPT2LMHeadModel(config).train()


def checkpointed() -> Qwen2ForCausalLM:
    model = qwen()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model


def compiled() -> Qwen2ForCausalLM:
    model = qwen()
    model.compile(backend="aot_eager")
    return model


def partly_frozen() -> Qwen2ForCausalLM:
    model = qwen()
    model.model.embed_tokens.requires_grad_(False)
    return model


def gradients_of(model: PreTrainedModel, *, batch_size: int = 3, precision: str = "32-true") -> DomainGradients:
    trainer = pl.Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, enable_checkpointing=False)
    module = LanguageModule(model, Objective(), lambda _: (None, None))
    sweeper = Sweeper(
        trainer, module, RaggedTable(), clock=CostClock(), purpose="measuring", batch_size=batch_size,
        gradient_rows=batch_size,
        token_bytes=torch.ones(VOCABULARY), tokenizer=Path("unused"), document_mask=False,
    )  # fmt: skip
    return DomainGradients(sweeper)


def gradient(model: PreTrainedModel, ids: list[int], keep: Callable[[str], bool] = lambda name: True) -> Tensor:
    """(P,) of the mean token loss of rows, by .backward() on a copy, row by row, without padding."""
    model, table = copy.deepcopy(model).eval(), RaggedTable()
    for row in ids:
        tokens = table.tokens[row : row + 1, : table.lengths[row]]
        if tokens.shape[1] > 1:
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").backward()
    total = sum(int(table.lengths[row]) - 1 for row in ids)
    kept = [p for name, p in model.named_parameters() if p.requires_grad and keep(name)]
    return torch.cat([p.grad.flatten() for p in kept]).double() / total


def expected_gram(model: PreTrainedModel, *, clip: float | None = None, **keep: Callable[[str], bool]) -> Tensor:
    """(3, 3) for the rows of BATCH."""
    a, c = gradient(model, [0, 1, 3], **keep), gradient(model, [13, 12, 17, 16, 12], **keep)
    if clip is not None:
        a, c = (g * min(1.0, clip / float(g.norm())) for g in (a, c))
    matrix = torch.stack([a, torch.zeros_like(a), c])
    return matrix @ matrix.T


MODELS = [
    *(qwen, gpt2, checkpointed, partly_frozen, pytest.param(lambda: qwen(tie_word_embeddings=True), id="tied")),
    pytest.param(lambda: qwen(attention_dropout=0.5), id="dropout"),
]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_gram_is_that_of_plain_backward_passes(make: Callable[[], PreTrainedModel], batch_size: int) -> None:
    model = make()
    got = gradients_of(model, batch_size=batch_size).gram(BATCH, parameters=None, clip=None)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected_gram(model), rtol=1e-4, atol=1e-7)
    assert got[1].abs().max() == 0 and got[:, 1].abs().max() == 0, "b is not in the batch"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_model() -> None:
    got = gradients_of(compiled()).gram(BATCH, parameters=None, clip=None)
    torch.testing.assert_close(got, expected_gram(qwen()), rtol=1e-4, atol=1e-7)


def test_mixed_precision_is_near() -> None:
    got = gradients_of(qwen(), precision="bf16-mixed").gram(BATCH, parameters=None, clip=None)
    torch.testing.assert_close(got, expected_gram(qwen()), rtol=0.05, atol=0.01)
    assert float((got - expected_gram(qwen())).abs().max()) > 1e-6


def test_clip_limits_the_norm_of_each_domain() -> None:
    free = expected_gram(qwen()).diagonal().sqrt()
    between = float(free[0] + free[2]) / 2
    for clip in (0.1, between, 100.0):
        got = gradients_of(qwen()).gram(BATCH, parameters=None, clip=clip)
        torch.testing.assert_close(got, expected_gram(qwen(), clip=clip), rtol=1e-4, atol=1e-8)
        assert float(got.diagonal().max()) <= clip**2 * (1 + 1e-9)


@pytest.mark.parametrize("pattern", ["mlp", r"layers\.0\.", "norm", r"^model\.embed"])
def test_a_pattern_chooses_parameters(pattern: str) -> None:
    import re

    def keep(name: str) -> bool:
        return re.search(pattern, name) is not None

    got = gradients_of(qwen()).gram(BATCH, parameters=pattern, clip=None)
    torch.testing.assert_close(got, expected_gram(qwen(), keep=keep), rtol=1e-4, atol=1e-8)


def test_tied_weights_answer_to_both_names_and_count_once() -> None:
    model = qwen(tie_word_embeddings=True)
    head, embedding = (gradients_of(model).gram(BATCH, parameters=p, clip=None) for p in ("lm_head", "embed_tokens"))
    assert torch.equal(head, embedding) and float(head.diagonal().max()) > 0
    both = gradients_of(model).gram(BATCH, parameters="lm_head|embed_tokens", clip=None)
    assert torch.equal(both, embedding)


def test_a_pattern_that_finds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.self_attn"):
        gradients_of(qwen()).gram(BATCH, parameters="attn_weights", clip=None)
    with pytest.raises(ConfigError, match="no parameter"):
        gradients_of(partly_frozen()).moments(BATCH, parameters="embed_tokens")


@pytest.mark.parametrize("parameters", [None, "mlp"])
def test_moments_are_those_of_row_after_row(parameters: str | None) -> None:
    model = qwen(attention_dropout=0.5)

    def keep(name: str) -> bool:
        return parameters is None or parameters in name

    got = gradients_of(model).moments(BATCH, parameters=parameters)
    assert got[1].tolist() == [0, 0, 0]
    for k, rows in ((0, [0, 1]), (2, [13, 12, 17, 16, 12])):  # row 3 has no target, and so no gradient
        each = torch.stack([gradient(model, [row], keep) for row in rows])
        expected = [float((each.mean(0) ** 2).sum()), float((each**2).sum(1).mean()), len(rows)]
        assert got[k].tolist() == pytest.approx(expected, rel=1e-4)


def test_no_rows_at_all() -> None:
    gradients = gradients_of(qwen())
    for ids in (torch.empty(0, dtype=torch.int64), torch.tensor([3])):
        assert gradients.gram(ids, parameters=None, clip=5.0).tolist() == [[0.0] * 3] * 3
        assert gradients.moments(ids, parameters=None).tolist() == [[0.0] * 3] * 3


def test_what_was_there_stays() -> None:
    model = gpt2()
    model.transformer.h[0].eval()  # one part in evaluation mode, as a user may leave it
    gradients = gradients_of(model)
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    with torch.no_grad():  # as some hooks are called
        gradients.gram(BATCH, parameters=None, clip=None)
        gradients.moments(BATCH, parameters=None)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradients.gram(BATCH, parameters=None, clip=None)
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


@pytest.mark.parametrize("make", [gpt2, checkpointed, lambda: qwen(attention_dropout=0.3)])
def test_training_is_the_same_to_the_bit(make: Callable[[], PreTrainedModel]) -> None:
    def trained(*, measure: bool) -> dict[str, Tensor]:
        gradients = gradients_of(make())
        module = gradients.sweeper.module
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        torch.manual_seed(7)
        for step in range(4):
            for micro in BATCH.view(2, 4):  # the second half of the batch finds the gradients of the first
                if measure:
                    gradients.gram(BATCH, parameters=None, clip=None)
                    gradients.moments(BATCH.roll(step), parameters=None)
                gradients.sweeper.token_losses(micro)[0].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return module.state_dict()

    with_it, without = trained(measure=True), trained(measure=False)
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_the_clock_is_charged() -> None:
    gradients = gradients_of(qwen())
    clock, module = gradients.sweeper.clock, gradients.sweeper.module
    tokens = float(gradients.sweeper.index.tokens_of(BATCH).sum())
    lengths = gradients.sweeper.index.tokens_of(BATCH).tolist()
    for measure in (gradients.gram, gradients.moments):
        before = clock.snapshot("measuring")
        measure(BATCH, parameters=None, **({"clip": None} if measure == gradients.gram else {}))
        cost = clock.since("measuring", before)
        assert cost["tokens"] == tokens
        assert cost["flops"] == pytest.approx(3 * sum(n * module.forward_flops(n) for n in lengths))
        assert cost["seconds"] > 0
    assert clock.charges["training"].seconds == pytest.approx(-clock.charges["measuring"].seconds)
