"""Adapters: they alone are trained, resumed exactly, and exported merged or alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from regimen.core.errors import ConfigError
from regimen.runs import validate
from regimen.runs.export import export
from regimen.runs.identity import config_hash
from regimen.runs.models import make_model
from regimen.runs.references import load_model
from regimen.training.callbacks.checkpoint import checkpoints
from regimen.training.cost import forward_flops, training_flops
from tests.contract.test_methods import assert_equal_weights, cut_after
from tests.support.runs import SMALL, compose_settings, run, settings_of, story, write_corpus

LORA = ("model.lora.rank=2", "model.lora.alpha=8", "optimizer.lr=3e-2")
POOL: Any = SimpleNamespace(vocab_size=300, seq_len=32, eos_id=0, pad_id=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def model_of(*overrides: str) -> Any:
    torch.manual_seed(0)
    return make_model(compose_settings(*SMALL, "dataset.path=x", *overrides)["model"], POOL)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(64).view(2, 32) * 3
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def pool_of(settings: dict[str, Any]) -> Any:
    from regimen.runs.experiment import make_pool

    return make_pool(settings, progress=False)


@pytest.mark.parametrize("shape", ["plain", "checkpointed", "gpt2"])
def test_only_adapters_get_gradients(shape: str) -> None:
    more = ("model.gradient_checkpointing=true",) if shape == "checkpointed" else ()
    model = gpt2_with_adapters() if shape == "gpt2" else model_of(*LORA, *more)
    model(input_ids=torch.arange(8)[None]).logits.float().square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any("lm_head" in name for name in trained), "all-linear leaves the head alone"


def gpt2_with_adapters() -> Any:
    settings = compose_settings("model=nano", *LORA)["model"]
    config = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}
    return make_model({**settings, "architecture": "gpt2", "config": config}, POOL)


def test_new_adapters_change_nothing_and_off_is_off() -> None:
    adapted, plain = model_of(*LORA), model_of()
    assert torch.equal(logits(adapted), logits(plain))
    assert plain.state_dict().keys() == model_of("model.lora=null").state_dict().keys()
    assert all(p.requires_grad for p in plain.parameters())


def test_targets_are_chosen_by_name_or_expression() -> None:
    for targets in ("[q_proj,v_proj]", r"'.*self_attn\.[qv]_proj'"):
        names = {n for n, p in model_of(*LORA, f"model.lora.targets={targets}").named_parameters() if p.requires_grad}
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.lora.targets=[qproj]", "did you mean 'q_proj'(.|\n)*no module is called qproj(.|\n)*down_proj"),
        ("model.lora.targets=[q_proj,nothing]", "no module is called nothing(.|\n)*model.lora.targets="),
        ("model.lora.targets='.*xyz'", "no module is called"),
        ("model.lora.targets=[norm]", "adapters cannot be put there"),
    ],
)
def test_targets_that_match_nothing_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(*LORA, setting)


@pytest.mark.parametrize("setting", ["rank=0", "rank=two", "alpha=0", "dropout=1", "targets=[]", "targets=3"])
def test_values_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"model.lora.{setting.split('=')[0]} is out of range"):
        validate.settings(compose_settings("model.lora.rank=2", f"model.lora.{setting}"))


def test_a_missing_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"regimen\[lora\]"):
        model_of(*LORA)
    model_of()


def test_a_run_without_adapters_keeps_its_hash() -> None:
    plain = compose_settings()
    before = json.loads(json.dumps(plain))
    del before["model"]["lora"], before["objective"]["kind"]
    assert config_hash(before) == config_hash(plain) == config_hash(compose_settings("model.lora=null"))
    assert config_hash(plain) != config_hash(compose_settings("model.lora.rank=2"))


def test_training_moves_adapters_alone_and_resumes_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    common = (*LORA, "model.lora.dropout=0.1", "trainer.micro_batch_size=4", "trainer.save_every_steps=1")
    common = (*common, "trainer.keep_checkpoints=null")
    whole = run(corpus, tmp_path, *common, f"run_dir={tmp_path}/whole")
    first, last = (torch.load(checkpoints(whole)[k], weights_only=True)["state_dict"] for k in (0, -1))
    moved = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert moved and all(".lora_" in name for name in moved)
    cut = cut_after(whole, tmp_path / "cut", step=5)
    resumed = run(corpus, tmp_path, *common, f"run_dir={cut}")
    assert json.loads((resumed / "attempt.json").read_text())["action"] == "resume"
    assert story(resumed) == story(whole)
    assert_equal_weights(checkpoints(resumed)[-1], checkpoints(whole)[-1])


def test_the_merged_export_is_the_adapted_model(corpus: Path, tmp_path: Path) -> None:
    folder = run(corpus, tmp_path, *LORA, f"run_dir={tmp_path}/run")
    pool = pool_of(settings_of(corpus, tmp_path, *LORA))
    adapted = load_model(folder, pool)
    merged = AutoModelForCausalLM.from_pretrained(export(folder, tmp_path / "merged"))
    assert not any("lora" in name for name in merged.state_dict())
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-5)
    with pytest.raises(ConfigError, match="nowhere but in this run"):
        export(folder, tmp_path / "alone", merge=False)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in peft
def test_adapters_of_a_pretrained_model_are_exported_alone(corpus: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base = export(run(corpus, tmp_path, f"run_dir={tmp_path}/base"), tmp_path / "exported")
    with pytest.raises(ConfigError, match="no adapters"):
        export(tmp_path / "base", tmp_path / "alone", merge=False)
    tuned = (*LORA, "model.pretrained=true", f"model.path={base}", "seed=1")
    folder = run(corpus, tmp_path, *tuned, f"run_dir={tmp_path}/tuned")
    adapted = load_model(folder, pool_of(settings_of(corpus, tmp_path, *tuned)))
    alone = export(folder, tmp_path / "alone", merge=False)
    assert (alone / "adapter_model.safetensors").is_file() and not (alone / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), alone)
    assert torch.allclose(logits(loaded), logits(adapted), atol=1e-6)
    assert not torch.allclose(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-4)


@pytest.mark.parametrize("targets", ["all-linear", r".*layers\.1\..*_proj"])
def test_training_flops_of_adapters_are_what_pytorch_counts(targets: str) -> None:
    """In closed form: what is charged beyond the counted is what the first trained block does not need, and norms."""
    tokens, rank = 16, 2
    shape = ("model.config.num_hidden_layers=3", "model.config.num_key_value_heads=2")
    eager = "model.attn_implementation=eager"
    model = model_of(*LORA, *shape, eager, f"model.lora.targets={targets}")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None], use_cache=False).logits.square().mean().backward()
    first = 0 if targets == "all-linear" else 1
    named = dict(model.named_parameters())
    elementwise = {name: p.numel() for name, p in named.items() if p.dim() == 1}  # norms and biases, not counted
    backed = sum(size for name, size in elementwise.items() if _block(name) >= first)
    attention = model.model.layers[first].self_attn
    reading = [getattr(attention, f"{name}_proj") for name in "qkv"]  # their input needs no gradient
    unneeded = sum(linear.base_layer.weight.numel() + rank * linear.in_features for linear in reading)
    beyond = tokens * 2 * (sum(elementwise.values()) + backed + unneeded)
    assert tokens * training_flops(model, tokens) == counter.get_total_flops() + beyond


def _block(name: str) -> int:
    inside = re.search(r"layers\.(\d+)\.", name)
    return int(inside[1]) if inside else 99


def test_training_flops_of_a_whole_model_are_three_forward_passes() -> None:
    model = model_of()
    assert training_flops(model, 16) == 3 * forward_flops(model, 16)
