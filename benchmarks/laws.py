"""How long mixing laws and entropies take: `python benchmarks/laws.py [--tables FOLDER] [--megatokens 27]`.

--tables: RegMix's published tables (train_mixture_1m.csv, train_pile_loss_1m.csv); without them random ones of the same
shape are fitted. Seconds are CPU seconds of this process with one thread, the best of two.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from regimen.mixing.laws.bimix import BiMix
from regimen.mixing.laws.law import Law
from regimen.mixing.laws.mixing_laws import MixingLaws
from regimen.mixing.laws.olmix import Olmix
from regimen.mixing.laws.regmix_lightgbm import RegMixLightGBM
from regimen.mixing.laws.regmix_linear import RegMixLinear
from regimen.mixing.laws.table import LawTable
from regimen.runs.fitting.tables import read_tables
from regimen.runs.summary import machine
from regimen.signals.entropy import conditional, joint, shannon, text_vectors, von_neumann

LAWS: tuple[Law, ...] = (BiMix(), RegMixLinear(), RegMixLightGBM(), MixingLaws(), Olmix())


def seconds(call: Callable[[], object]) -> float:
    found = []
    for _ in range(2):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def regmix_table(folder: Path | None) -> LawTable:
    if folder is not None:
        paths = (folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv")
        return read_tables(*paths).table
    rng = np.random.default_rng(0)
    names = tuple(f"domain{i:02d}" for i in range(17))
    mixtures = rng.dirichlet(np.full(17, 0.3), size=512)
    losses = 3 + np.exp(-2 * mixtures[:, :13]) + 0.01 * rng.standard_normal((512, 13))
    return LawTable(domains=names, mixtures=mixtures, targets=names[:13], losses=losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--megatokens", type=float, default=27.0, help="27 million BPE tokens are about 100 MB of text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = regmix_table(options.tables)
    one = table.targets[0] if "pile_cc" not in table.targets else "pile_cc"
    print(f"| {machine()['cpu']}, 1 thread | seconds |\n|---|---|")
    for law in LAWS:
        print(f"| {type(law).__name__}, {len(table)} x {len(table.domains)}, one target | "
              f"{seconds(lambda law=law: law.fit(table, one)):.2f} |")  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = (rng.zipf(1.2, size=int(options.megatokens * 1e6)) % 16384).astype(np.int64)
    rows = [torch.from_numpy(row) for row in np.array_split(tokens, len(tokens) // 1024)]
    for entropy in (shannon, joint, conditional):
        took = seconds(lambda entropy=entropy: entropy(rows))
        print(f"| {entropy.__name__} entropy, {options.megatokens:g}M tokens | {took:.2f} |")
    words = ["".join(rng.choice(list("etaoinshrdlu"), size=rng.integers(2, 12))) for _ in range(20_000)]
    groups = [[" ".join(rng.choice(words, size=600)) for _ in range(1000)] for _ in range(9)]
    took = seconds(lambda: [von_neumann(vectors) for vectors in text_vectors(groups, file=None)])
    print(f"| von Neumann entropy, 9 domains x 1000 texts of 600 words | {took:.2f} |")


if __name__ == "__main__":
    main()
