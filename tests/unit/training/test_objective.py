"""The loss of a step over the global batch, and what a model sees across documents."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from regimen.core.errors import ConfigError
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.training.cost import forward_flops
from regimen.training.cross_entropy import IGNORE
from regimen.training.loader import Batch, collate
from regimen.training.module import LanguageModule, Objective
from regimen.training.sweep import undisturbed
from tests.support.runs import settings_of, write_corpus


def small_model(**changes: object) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=260, num_key_value_heads=2, max_position_embeddings=64, **{**shape, **changes})
    return Qwen2ForCausalLM(config)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    home = tmp_path_factory.mktemp("home")
    return make_pool(settings_of(write_corpus(home / "corpus"), home), progress=False)


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    logits, targets = torch.randn(4, 9, 13), torch.randint(0, 13, (4, 9))
    targets[0, 3:] = IGNORE
    targets[1, 7:] = IGNORE
    return logits, targets


def steps_loss(reduction: str, micro: int) -> torch.Tensor:
    """The loss of one step as the module computes it over `4 / micro` micro-batches, with weights of one."""
    logits, targets = ragged()
    per_row = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE).sum(1)
    tokens = (targets != IGNORE).sum(1)
    objective = Objective(reduction=reduction)
    whole = SimpleNamespace(global_rows=4, global_tokens=int(tokens.sum()))
    parts = zip(per_row.split(micro), tokens.split(micro), strict=True)
    return torch.stack([objective.terms(s, t).sum() / objective.normalizer(whole) for s, t in parts]).sum()


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_token_mean_is_pytorchs_mean_however_the_batch_is_cut(micro: int) -> None:
    logits, targets = ragged()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(steps_loss("token_mean", micro), expected)
    assert abs(float(steps_loss("sample_mean", micro) - expected)) > 1e-3


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown reduction"):
        Objective(reduction="mean")


@pytest.mark.parametrize("tied", [True, False])
def test_forward_flops_are_what_pytorch_counts(tied: bool) -> None:
    model = small_model(tie_word_embeddings=tied, attn_implementation="eager")
    ids = torch.randint(0, 260, (2, 16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    counted = counter.get_total_flops() / ids.numel()
    # Norms and biases are parameters too; they multiply nothing in the counter's eyes.
    assert forward_flops(model, 16) == pytest.approx(counted, rel=0.02)


def test_a_document_mask_stops_attention_between_documents(pool: Pool) -> None:
    """With it, what stands before a document's start changes nothing after it; without it, it does."""
    ids = torch.arange(pool.train.index.rows)
    starts = pool.train.documents(ids)
    row = int(starts.row[starts.start > 4][0])
    start = int(starts.start[(starts.row == row) & (starts.start > 4)][0])
    model = small_model().eval()
    module = LanguageModule(model, Objective(), lambda m: None)
    for mask in (True, False):
        rows = collate(pool.train, torch.tensor([row]), document_mask=mask)
        batch = Batch(**rows, step=0, micro=0, global_rows=1, global_tokens=1)
        other = batch._replace(inputs=batch.inputs.clone())
        other.inputs[0, :start] = (other.inputs[0, :start] + 1) % 250
        with torch.no_grad():
            after = [module.token_losses(b)[0, start:] for b in (batch, other)]
        assert torch.allclose(*after, atol=1e-6) == mask


def test_measuring_leaves_modes_and_random_states_as_they_were() -> None:
    model = small_model(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    with undisturbed(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(5)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_of_unequal_length_have_no_targets_past_their_end(pool: Pool) -> None:
    class Ragged:
        index = pool.train.index

        def read(self, ids: torch.Tensor, *, positions: bool) -> object:
            rows = pool.train.read(ids, positions=positions)
            return rows._replace(lengths=torch.tensor([5, rows.tokens.shape[1]]))

    rows = collate(Ragged(), torch.tensor([0, 1]), document_mask=False)
    assert (rows["targets"][0] != IGNORE).sum() == 4
    assert (rows["targets"][1] != IGNORE).all()
    assert rows["tokens"].tolist() == [4, pool.seq_len]
