"""The presets of conf/model have the shapes of the models they are named after."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.runs.models import base_model, make_model
from tests.support.runs import compose_settings

PUBLISHED = {  # preset: (vocabulary, parameters), from the models' cards on the Hugging Face hub
    "qwen2_5_0_5b": (151_936, 494_032_768),
    "qwen2_5_1_5b": (151_936, 1_543_714_304),
    "qwen2_5_7b": (152_064, 7_615_616_512),
    "llama_3_2_1b": (128_256, 1_235_814_400),
    "llama_3_2_3b": (128_256, 3_212_749_824),
    "mistral_7b": (32_768, 7_248_023_552),
}
ABOUT = {  # preset: (vocabulary, parameters it is named after)
    "nano": (4_096, 1.0e6),
    "tiny": (4_096, 1.0e7),
    "delt_160m": (32_000, 160e6),
    "delt_470m": (32_000, 470e6),
    "delt_1b": (32_000, 1.0e9),
    "delt_1_7b": (32_000, 1.7e9),
    "doremi_280m": (256_000, 280e6),
}


def built(preset: str, vocabulary: int, *overrides: str) -> Any:
    """The model without memory for its weights, under a pool with this vocabulary."""
    settings = compose_settings(f"model={preset}", *overrides)["model"]
    pool: Any = SimpleNamespace(vocab_size=vocabulary, seq_len=256, eos_id=0, pad_id=1)
    with torch.device("meta"):
        return make_model(settings, pool)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_models_have_their_published_size(preset: str) -> None:
    vocabulary, expected = PUBLISHED[preset]
    assert parameters(built(preset, vocabulary)) == expected


@pytest.mark.parametrize("preset", ABOUT)
def test_small_models_have_about_the_size_of_their_name(preset: str) -> None:
    vocabulary, expected = ABOUT[preset]
    assert parameters(built(preset, vocabulary)) == pytest.approx(expected, rel=0.2)


def test_every_preset_is_measured_here() -> None:
    presets = {path.stem for path in (conf_dir() / "model").glob("*.yaml")} - {"base"}
    assert presets == {*PUBLISHED, *ABOUT}


def test_options_reach_the_model() -> None:
    model = built("nano", 300, "model.gradient_checkpointing=true", "model.attn_implementation=eager")
    assert all(layer.gradient_checkpointing for layer in model.model.layers)
    assert model.config._attn_implementation == "eager"
    assert not model.config.use_cache and model.config.vocab_size == 300


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.architecture=qwen", "did you mean 'qwen"),
        ("+model.config.hidden=64", "no hidden"),
        ("model.config.num_attention_heads=5", "do not divide"),
        ("model.config.hidden_size=0", "hidden_size must be positive"),
        ("model.config.max_position_embeddings=128", "longer than the model's context"),
        ("model.config.hidden_size=wide", "cannot be built"),
    ],
)
def test_impossible_shapes_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        built("nano", 300, override)


def test_a_pretrained_model_is_planned_without_its_weights(tmp_path: Path) -> None:
    """`check` asks for the shape on `meta`, where transformers refuses to load."""
    settings = compose_settings("model=nano", "model.lora.rank=2")["model"]
    pool: Any = SimpleNamespace(vocab_size=300, seq_len=64, eos_id=0, pad_id=1)
    base_model(settings, pool).save_pretrained(tmp_path)
    given = {**settings, "pretrained": True, "path": str(tmp_path)}
    with torch.device("meta"):
        planned = make_model(given, pool)
    loaded = make_model(given, pool)
    assert {name: p.shape for name, p in planned.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }
    assert {p.device.type for p in planned.parameters()} == {"meta"}
    (tmp_path / "model.safetensors").unlink()
    with torch.device("meta"), pytest.raises(ConfigError, match="no weights"):
        make_model(given, pool)
