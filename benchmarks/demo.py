"""`make demo`: train several data methods on text that every Python installation has, and compare them.

    python benchmarks/demo.py [settings that every run gets, e.g. budget.steps=200]

Six methods and three seeds on a model of 0.2M parameters: a few minutes on two cores. It shows how a comparison looks;
three seeds and a few seconds of training prove nothing about the methods.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

METHODS = "natural,uniform,odm,loss_selection,folding,loss_weighting"
SMALL = [
    *("dataset.seq_len=128", "dataset.tokenizer.vocab_size=2048", "dataset.validation.max_rows=24"),
    *("model.config.hidden_size=64", "model.config.intermediate_size=160", "trainer.global_batch_size=16"),
    *("optimizer.lr=3e-3", "budget.steps=100", "evaluation.at=[0,0.33,0.67,1]"),
]


def main() -> int:
    start = time.perf_counter()
    regimen = [sys.executable, "-m", "regimen"]
    sweep = ["sweep=demo", *SMALL, *sys.argv[1:]]
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    done = subprocess.run([*regimen, "train", "-m", f"method={METHODS}", "seed=1,2,3", *sweep], check=False)
    if done.returncode:
        return done.returncode
    folder = Path(os.environ.get("REGIMEN_OUTPUTS", "outputs")) / "demo"
    done = subprocess.run([*regimen, "report", f"runs={folder}"], check=False)
    print(f"demo finished in {time.perf_counter() - start:.0f} s; open {folder / 'report.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
