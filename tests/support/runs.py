"""A small real corpus and runs on it, composed by Hydra as the command line does, in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from regimen.cli import conf_dir
from regimen.runs.identity import run_folder
from regimen.runs.train import train

DOMAINS = ("code", "prose", "sums")


def write_corpus(folder: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """Three domains of generated text that a model can learn at different speeds."""
    rng = random.Random(seed)
    words = ["the", "a", "model", "data", "row", "loss", "mixes", "orders", "every", "domain", "slowly", "often"]
    folder.mkdir(parents=True, exist_ok=True)

    def text(domain: str) -> str:
        if domain == "code":
            name = rng.choice(words)
            return f"def {name}(x):\n    return x + {rng.randint(0, 99)}\n" * rng.randint(2, 6)
        if domain == "prose":
            return " ".join(rng.choice(words) for _ in range(rng.randint(20, 60))) + "."
        return "\n".join(
            f"{a} + {b} = {a + b}" for a, b in ((rng.randint(0, 99), rng.randint(0, 99)) for _ in range(12))
        )

    for domain in DOMAINS:
        lines = (json.dumps({"id": f"{domain}-{i}", "text": text(domain)}) for i in range(documents))
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def replace_line(file: Path, number: int, line: str) -> None:
    """Put another line into a file; lines count from 1."""
    found = file.read_text().splitlines()
    found[number - 1] = line
    file.write_text("\n".join(found) + "\n")


SMALL = (
    *("dataset=jsonl", "dataset.seq_len=32", "dataset.tokenizer.kind=bytes", "dataset.validation.fraction=0.1"),
    *("dataset.validation.max_rows=4", "model.config.hidden_size=16", "model.config.intermediate_size=24"),
    *("model.config.num_hidden_layers=1", "model.config.num_attention_heads=2", "trainer.global_batch_size=8"),
    *("trainer.progress=none", "budget.steps=8", "evaluation.at=[0,0.5,1]", "trainer.save_every_minutes=null"),
)


def compose_settings(*overrides: str) -> dict[str, Any]:
    """Resolved settings as plain data, composed as the command line does."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    if settings["choices"]["method"] is None:
        settings["choices"]["method"] = list(settings["strategies"])
    return {str(key): value for key, value in settings.items()}


def settings_of(corpus: Path, home: Path, *overrides: str) -> dict[str, Any]:
    """Resolved settings of a small run, as plain data."""
    fixed = (f"dataset.path={corpus}", f"paths.pools={home}/pools", f"paths.outputs={home}/outputs")
    return compose_settings(*SMALL, *fixed, *overrides)


def run(corpus: Path, home: Path, *overrides: str) -> Path:
    """Train a small run; returns its folder."""
    settings = settings_of(corpus, home, *overrides)
    return train(settings, run_folder(settings, sweep=None))


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


_TIMED = ("seconds", "tokens_per_second", "memory_mb", "cost")


def story(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What happened in a run, step by step, without what depends on the machine's speed."""
    told = {}
    for name in ("metrics.jsonl", "record.jsonl"):
        told[name] = [{k: v for k, v in row.items() if k not in _TIMED} for row in lines(folder / name)]
    return told
