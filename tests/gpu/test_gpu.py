"""What a GPU computes in another way: bfloat16, fused attention, compiled models, fused optimizers, sketches, resuming.

Each test runs on a CPU too, in the default suite, so that the code is known to run where no GPU is.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from regimen.core.measuring import Sketch
from regimen.training.capabilities import SHARDED
from regimen.training.sketching import Sketcher
from tests.support.runs import lines, run
from tests.support.sharded import cut, grid, of_steps

ROOT = Path(__file__).resolve().parents[2]
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]
CUDA = pytest.param("cuda", marks=GPU)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
TRAINER = {
    "cpu": ("trainer=cpu", "trainer.precision=bf16-mixed"),
    "cuda": ("trainer=gpu",),
}
FLOAT = "trainer.precision=32-true"


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


def llama(device: str, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, tie_word_embeddings=False, use_cache=False, **shape)
    return LlamaForCausalLM._from_config(config, **more).to(device).eval()


@DEVICES
def test_bfloat16_is_float32_to_its_rounding(corpus: Path, home: Path, tmp_path: Path, device: str) -> None:
    half = run(corpus, home, *TRAINER[device], f"run_dir={tmp_path}/half")
    full = run(corpus, home, *TRAINER[device], FLOAT, f"run_dir={tmp_path}/full")
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=1e-2)
    plain = run(corpus, home, "trainer=cpu", f"run_dir={tmp_path}/plain")
    assert losses(full) == pytest.approx(losses(plain), rel=1e-4)


@DEVICES
def test_fused_attention_is_taken_and_agrees(device: str) -> None:
    """No kernel that holds the attention matrix may be chosen: the others are allowed alone."""
    fused, written = llama(device, attn_implementation="sdpa"), llama(device, attn_implementation="eager")
    tokens = torch.randint(0, 50, (2, 64), generator=torch.Generator().manual_seed(1)).to(device)
    found = []
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    for model in (fused, written):
        with sdpa_kernel(kernels), torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        gradient = torch.autograd.grad(loss, model.model.layers[0].self_attn.q_proj.weight)[0]
        found.append((loss.detach(), gradient))
    (loss, gradient), (other, reference) = found
    assert float(loss) == pytest.approx(float(other), rel=1e-2)
    assert float((gradient - reference).norm() / reference.norm()) < 0.05


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_a_compiled_model_trains_alike(corpus: Path, home: Path, tmp_path: Path, device: str) -> None:
    plain = run(corpus, home, *TRAINER[device], FLOAT, f"run_dir={tmp_path}/plain")
    compiled = run(corpus, home, *TRAINER[device], FLOAT, "model.compile=true", f"run_dir={tmp_path}/compiled")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


@DEVICES
def test_a_fused_optimizer_steps_alike(corpus: Path, home: Path, tmp_path: Path, device: str) -> None:
    fused = run(corpus, home, *TRAINER[device], FLOAT, f"run_dir={tmp_path}/fused")
    plain = run(corpus, home, *TRAINER[device], FLOAT, "optimizer.fused=false", f"run_dir={tmp_path}/plain")
    assert losses(fused) == pytest.approx(losses(plain), abs=1e-5)


@DEVICES
@pytest.mark.parametrize("kind", ["fold", "factored"])
def test_sketches_of_a_batch_are_those_of_its_rows(device: str, kind: str) -> None:
    tokens = torch.randint(0, 50, (5, 20), generator=torch.Generator().manual_seed(1))
    made = {}
    for where, backend in ((device, "hooks"), (device, "loop"), ("cpu", "hooks")):
        sketch = Sketch(kind=kind, dimensions=256, rank=4, backend=backend)
        given = tokens.to(where)
        made[where, backend] = Sketcher(llama(where), sketch, chunk=16)(given[:, :-1], given[:, 1:], None).cpu()
    scale = made["cpu", "hooks"].abs().max()
    for other in made.values():
        assert float((other - made["cpu", "hooks"]).abs().max() / scale) < 1e-3


@DEVICES
def test_a_stopped_run_goes_on_bit_for_bit(corpus: Path, home: Path, tmp_path: Path, device: str) -> None:
    """With dropout, so with the GPU's own random state."""
    exact = ("trainer.deterministic=true", "model.attn_implementation=eager", "+model.config.attention_dropout=0.2")
    keep = ("trainer.save_every_steps=3", "trainer.keep_checkpoints=null")
    try:
        whole = run(corpus, home, *TRAINER[device], *exact, *keep, f"run_dir={tmp_path}/whole")
        cut(whole, tmp_path / "resumed")
        resumed = run(corpus, home, *TRAINER[device], *exact, *keep, f"run_dir={tmp_path}/resumed")
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(resumed) == losses(whole)


@DEVICES
def test_the_benchmark_runs(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every measure but compiling, on a made-up corpus, without a network; its figures are for a reader."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    arguments = ("--device", device, "--shapes", "nano", "--steps", "1", "--no-compile")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--json", f"{tmp_path}/found.json"])
    runpy.run_path(str(ROOT / "benchmarks/gpu.py"), run_name="__main__")
    assert "left out" not in capsys.readouterr().out
    told = json.loads((tmp_path / "found.json").read_text())
    assert len(told["found"]) == 11 and len(told["ratios"]) == 9
    assert all(value > 0 for values in (told["ratios"], *told["found"].values()) for value in values.values())


@pytest.mark.timeout(600)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
def test_sharded_strategies_train_on_one_gpu_as_on_one_cpu(examples: Path, one: Path) -> None:
    grid(examples, "gpu", SHARDED, "trainer.accelerator=gpu", "trainer.devices=1", "++strategies.every.names=['loss']")
    for strategy in SHARDED:
        assert of_steps(examples / "gpu" / strategy, "batch") == of_steps(one, "batch")
        assert of_steps(examples / "gpu" / strategy, "loss") == pytest.approx(of_steps(one, "loss"), rel=1e-3)
