"""Memory of a process by hand: the ZeRO paper's own figure, shards that do not divide evenly, adapters, moments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from regimen.runs.memory import Memory, moments, state_memory
from regimen.runs.optimizers import make_optimizer
from regimen.runs.ranks import processes
from tests.support.runs import compose_settings

PAPER = 7_500_000_000  # parameters of arXiv 1910.02054, figure 1
BUCKET = 200_000_000  # numbers, of DeepSpeed


class Layered(nn.Module):
    """`count` layers of a matrix (rows, columns) and a vector, and an embedding."""

    def __init__(self, *, rows: int, columns: int, embedding: int, count: int = 2) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=count)
        self.embedding = nn.Embedding(embedding, columns)
        self.layers = nn.ModuleList(nn.Linear(columns, rows) for _ in range(count))


def held(model: nn.Module, strategy: str, **given: Any) -> Memory:
    settings: dict[str, Any] = {"world": 2, "precision": "32-true", "moments": 2, "on_cpu": True, **given}
    return state_memory(model, strategy=strategy, **settings)


def small() -> Layered:
    """5 x 3 + 5 numbers a layer, an embedding of 7 x 3: 61 in all, 51 of matrices."""
    return Layered(rows=5, columns=3, embedding=7)


@pytest.mark.parametrize(
    ("strategy", "gigabytes"),
    [("ddp", 120.0), ("deepspeed_zero1", 31.4), ("deepspeed_zero2", 16.6), ("deepspeed_zero3", 1.9)],
)
def test_the_figure_of_the_zero_paper(strategy: str, gigabytes: float) -> None:
    """7.5 billion parameters on 64 GPUs with Adam at 16 bits."""
    with torch.device("meta"):
        model = nn.Linear(PAPER // 1000, 1000, bias=False)
    found = held(model, strategy, world=64, precision="bf16-mixed", on_cpu=False)
    assert found.parameters + found.gradients + found.optimizer == pytest.approx(gigabytes * 1e9, abs=0.05e9)


def test_one_process_holds_all() -> None:
    assert held(small(), "auto", world=1) == Memory(4 * 61, 4 * 61, 8 * 61)
    assert held(small(), "auto", world=1, precision="bf16-mixed").copies == 2 * 40  # no embedding
    assert held(small(), "ddp").buffers == 4 * 61


def test_fsdp_cuts_rows_and_pads() -> None:
    """On 2: 3 of 5 rows, 3 of 5 numbers, 4 of 7 rows. In passing: embedding, both layers, the larger's gradient."""
    part = 2 * (3 * 3 + 3) + 4 * 3
    assert held(small(), "fsdp") == Memory(4 * part, 4 * part, 8 * part, gathered=4 * (21 + 2 * 20 + 21))
    assert held(small(), "fsdp", world=1) == Memory(4 * 61, 4 * 61, 8 * 61)
    assert held(small(), "fsdp", precision="bf16-mixed").copies == 2 * 40


def test_zero_cuts_groups_at_stages_1_and_2() -> None:
    """51 numbers with weight decay and 10 without, each padded to a multiple of 4 on 2 ranks: 26 and 6."""
    part = 26 + 6
    assert held(small(), "deepspeed_zero1") == Memory(4 * 61, 4 * 61, 12 * part, buffers=4 * 61)
    assert held(small(), "deepspeed_zero2") == Memory(4 * 61, 4 * part, 12 * part, buffers=4 * 61)
    half = held(small(), "deepspeed_zero2", precision="bf16-mixed")
    assert half == Memory(2 * 61, 2 * part, 12 * part, buffers=2 * 61)
    offloaded = held(small(), "deepspeed_zero2_offload", precision="bf16-mixed")
    assert offloaded == Memory(2 * 61, buffers=2 * 61, host=(12 + 4 + 2) * part)


def test_zero_cuts_each_parameter_at_stage_3() -> None:
    """8 of 15 and 3 of 5 numbers, twice, and 11 of 21. All 61 stay whole, being small; the largest module has 21."""
    part = 2 * (8 + 3) + 11
    assert held(small(), "deepspeed_zero3") == Memory(4 * part, 4 * part, 12 * part, 4 * (61 + 21), buffers=4 * 61)
    offloaded = held(small(), "deepspeed_zero3_offload")
    assert offloaded == Memory(gathered=4 * (61 + 21), buffers=4 * 61, host=(4 + 4 + 12 + 4) * part)


def test_a_gpu_takes_whole_buckets() -> None:
    assert held(small(), "deepspeed_zero2", on_cpu=False, precision="bf16-mixed").buffers == 2 * 2 * BUCKET
    assert held(small(), "deepspeed_zero3", on_cpu=False).buffers == 4 * BUCKET


def test_what_is_not_trained_has_neither_gradient_nor_moments() -> None:
    model = small()
    model.embedding.requires_grad_(False)
    model.layers.requires_grad_(False)
    model.layers[0].weight.requires_grad_(True)  # 15 numbers
    assert held(model, "ddp") == Memory(4 * 61, 4 * 15, 8 * 15, buffers=4 * 15)
    assert held(model, "fsdp")[:3] == (4 * 36, 4 * 9, 8 * 9)
    assert held(model, "deepspeed_zero2")[:3] == (4 * 61, 4 * 8, 12 * 8)
    assert held(model, "deepspeed_zero3")[:3] == (4 * 33, 4 * 8, 12 * 8)


def test_copies_are_what_autocast_saves_for_the_backward_pass() -> None:
    """Weights of linear layers, the head included, once where it is tied; neither norms nor a look-up."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    for tied in (False, True):
        config = LlamaConfig(vocab_size=20, tie_word_embeddings=tied, use_cache=False, **shape)
        model = LlamaForCausalLM(config).train()
        sizes = {p.shape for p in model.parameters() if p.ndim == 2}
        saved = {}

        def note(t: torch.Tensor, sizes: Any = sizes, saved: Any = saved) -> torch.Tensor:
            if t.dtype == torch.bfloat16 and {t.shape, t.shape[::-1]} & sizes:
                saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            kept = model(input_ids=torch.arange(6).view(2, 3)).logits
        assert kept.requires_grad  # the graph is alive, and so are the copies
        assert held(model, "auto", world=1, precision="bf16-mixed").copies == sum(saved.values())


@pytest.mark.parametrize(
    ("overrides", "count"), [((), 2), (("optimizer=sgd",), 0), (("optimizer=sgd", "optimizer.momentum=0.9"), 1)]
)
def test_moments_are_those_of_the_optimizer(overrides: tuple[str, ...], count: int) -> None:
    assert moments(make_optimizer(compose_settings(*overrides)["optimizer"], 10)) == count


def test_processes_are_devices_on_all_nodes() -> None:
    assert processes({"devices": 4, "num_nodes": 2, "accelerator": "gpu"}) == 8
    assert processes({"devices": [0, 3], "num_nodes": 1, "accelerator": "gpu"}) == 2
    assert processes({"devices": "auto", "num_nodes": 1, "accelerator": "cpu"}) == 1
