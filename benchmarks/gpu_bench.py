"""A run and a bare PyTorch loop of one shape, timed alike, on made-up words: see gpu.py."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytorch_lightning as pl
import torch
from bare import bare_step

from regimen.core.measuring import Sketch
from regimen.runs.attempt import Attempt
from regimen.runs.experiment import make_experiment, make_pool
from regimen.runs.optimizers import make_optimizer
from regimen.runs.run import Run
from regimen.training.callbacks.checkpoint import SaveCheckpoints
from regimen.training.sketching import Sketcher

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
WARM = 3
DOMAINS = ("code", "prose", "sums")


class Shape(NamedTuple):
    """A preset of conf/model with a vocabulary, rows of `length` tokens, and how many a step has."""

    model: str
    vocabulary: int
    length: int
    rows: int
    more: tuple[str, ...] = ()


SHAPES: Mapping[str, Shape] = {
    "160m": Shape("delt_160m", 32_000, 1024, 32),
    "0.5b": Shape("qwen2_5_0_5b", 151_936, 1024, 16),
    "1.5b": Shape("qwen2_5_1_5b", 151_936, 1024, 8),
    "nano": Shape("nano", 300, 32, 8, ("model.config.num_hidden_layers=2", "model.config.hidden_size=64")),
}


class Window(pl.Callback):
    """The seconds of the steps after those that warm up."""

    def __init__(self, device: str, last: int) -> None:
        self.device, self.last, self.steps, self.start, self.seconds = device, last, 0, 0.0, 0.0

    def mark(self) -> None:
        """A step has ended."""
        self.steps += 1
        if self.steps in (WARM, self.last):
            wait(self.device)
            now = time.perf_counter()
            self.start, self.seconds = (now, 0.0) if self.steps == WARM else (self.start, now - self.start)

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Bench:
    """Settings and runs of one shape in a folder."""

    def __init__(self, name: str, folder: Path, *, device: str, timed: int, peak: float) -> None:
        """timed: steps that are. peak: FLOP/s of the device."""
        self.name, self.shape, self.folder = name, SHAPES[name], folder / name
        self.device, self.timed, self.steps, self.peak = device, timed, WARM + timed, peak
        _write_words(self.folder, self.shape)

    def settings(self, *overrides: str) -> dict[str, Any]:
        from tests.support.runs import compose_settings

        shape, folder, device = self.shape, self.folder, self.device
        trainer = ("trainer=gpu",) if device == "cuda" else ("trainer=cpu", "trainer.precision=bf16-mixed")
        return compose_settings(
            *("dataset=jsonl", f"dataset.path={folder}/corpus", "dataset.overlap.n=0", "dataset.tokenizer.kind=hf"),
            *(f"dataset.tokenizer.path={folder}/words", f"dataset.seq_len={shape.length}"),
            *("dataset.validation.max_rows=1", "dataset.max_epochs_per_domain=null", f"paths.pools={folder}/pools"),
            *(f"paths.outputs={folder}/outputs", f"paths.store={folder}/store", f"budget.steps={self.steps}"),
            *(f"trainer.global_batch_size={shape.rows}", "trainer.progress=none", "trainer.save_every_minutes=null"),
            *(f"trainer.sweep_batch_size={shape.rows}", f"model={shape.model}", *shape.more, *trainer, *overrides),
        )

    def regimen(self, *overrides: str) -> dict[str, float]:
        """Tokens per second of `regimen train`, without the evaluation and the save at its end."""
        settings = self.settings(*overrides)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        run = Run(settings, folder, Attempt("begin", None, "bench"), make_pool(settings, progress=False), None, 0, [])
        window = Window(self.device, self.steps)
        run.evaluate.steps = set()
        run.trainer.callbacks[:] = [*(c for c in run.trainer.callbacks if not isinstance(c, SaveCheckpoints)), window]
        run._open_folder()
        run.trainer.fit(run.module, run.context.loader)
        return self.rate(window, run.experiment.flops_per_token)

    def bare(self, *overrides: str) -> dict[str, float]:
        """Of the same in a plain loop."""
        torch.manual_seed(0)
        settings, device = self.settings(*overrides), self.device
        pool = make_pool(settings, progress=False)
        experiment = make_experiment(settings, pool)
        model, stream = experiment.model.to(device).train(), experiment.stream()
        optimizer, schedule = make_optimizer(settings["optimizer"], experiment.steps)(model)
        window = Window(device, self.steps)
        for _ in range(self.steps):
            tokens = pool.train.read(stream.next()).tokens.to(device)
            loss = bare_step(model, tokens, optimizer, schedule, half=True)
            window.mark()
        assert torch.isfinite(loss)
        return self.rate(window, experiment.flops_per_token)

    def rate(self, window: Window, flops_per_token: float) -> dict[str, float]:
        rate = self.shape.rows * self.shape.length * self.timed / window.seconds
        found = {"tokens per second": rate, "utilisation": 3 * flops_per_token * rate / self.peak}
        if self.device == "cuda":
            found["GiB at most"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def sketches(self, backend: str) -> dict[str, float]:
        """Gradient sketches per second, a batch at once (hooks) or row after row (loop)."""
        settings, device = self.settings(), self.device
        pool = make_pool(settings, progress=False)
        model = make_experiment(settings, pool).model.to(device).eval()
        sketcher = Sketcher(model, Sketch(backend=backend), chunk=1024)
        tokens = pool.train.read(torch.arange(min(self.shape.rows, 8))).tokens.to(device)
        calls = 3
        for call in range(calls + 1):
            with torch.autocast(device, torch.bfloat16):
                made = sketcher(tokens[:, :-1].clone(), tokens[:, 1:].clone(), None)
            if call == 0:  # warms up
                wait(device)
                start = time.perf_counter()
        wait(device)
        assert torch.isfinite(made).all()
        return {"rows per second": calls * len(tokens) / (time.perf_counter() - start)}


def _write_words(folder: Path, shape: Shape) -> None:
    """A tokenizer whose tokens are words of made-up text, and a corpus of three domains."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<end>", "<pad>", "<unknown>")
    names = [*special, *(f"\u2581w{i}" for i in range(shape.vocabulary - len(special)))]  # each with its space
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")
    tokenizer.save_pretrained(str(folder / "words"))
    rng = random.Random(0)
    (folder / "corpus").mkdir(parents=True)
    for domain in DOMAINS:
        texts = (
            "".join(rng.choices(names[3:], k=shape.length)).replace("\u2581", " ")
            for _ in range(max(64, 2 * shape.rows))
        )
        lines = (json.dumps({"id": f"{domain}-{i}", "text": text}) for i, text in enumerate(texts))
        (folder / "corpus" / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
