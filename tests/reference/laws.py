"""Tables for tests of the mixing laws: synthetic ones, and RegMix's published ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.table import LawTable
from regimen.runs.fitting.tables import read_tables
from tests.support.shared import shared

# Token shares of RegMix's 17 domains, in sorted order (arXiv 2407.01492, the token prior of its code).
PRIOR = {
    "arxiv": 0.113285, "dm_mathematics": 0.015963, "enron_emails": 0.001751, "europarl": 0.007930,
    "freelaw": 0.079609, "github": 0.101751, "gutenberg_pg_19": 0.027085, "hackernews": 0.008033,
    "nih_exporter": 0.003913, "philpapers": 0.003708, "pile_cc": 0.236869, "pubmed_abstracts": 0.038826,
    "pubmed_central": 0.185376, "stackexchange": 0.066529, "ubuntu_irc": 0.011843, "uspto_backgrounds": 0.046447,
    "wikipedia_en": 0.051081,
}  # fmt: skip


def mixtures_of(n: int, k: int, *, seed: int = 0, strength: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([strength] * k, n)


def table_of(mixtures: Any, losses: Any, **more: Any) -> LawTable:
    """Domains `a`, `b`, ...; targets named as the domains, as far as there are losses."""
    mixtures, losses = np.asarray(mixtures, dtype=float), np.asarray(losses, dtype=float)
    losses = losses[:, None] if losses.ndim == 1 else losses
    names = [chr(ord("a") + i) for i in range(mixtures.shape[1])]
    targets = more.pop("targets", names[: losses.shape[1]])
    return LawTable(domains=names, mixtures=mixtures, targets=targets, losses=losses, **more)


def regmix(part: str, size: str, *, natural: bool = False) -> LawTable:
    """`train` or `test` at `1m`, `60m` or `1B`."""
    files = shared(f"regmix/{part}_mixture_{size}.csv"), shared(f"regmix/{part}_pile_loss_{size}.csv")
    table = read_tables(*files).table
    if not natural:
        return table
    return LawTable(
        domains=table.domains,
        mixtures=table.mixtures,
        targets=table.targets,
        losses=table.losses,
        natural=np.array([PRIOR[name] for name in table.domains]),
    )


def spearman(a: Any, b: Any) -> float:
    """Rank correlation times 100, as RegMix reports it."""
    from scipy.stats import spearmanr

    return 100 * float(spearmanr(a, b)[0])


def grid(k: int, parts: int) -> np.ndarray:
    """All mixtures of k domains in steps of 1 / parts."""
    if k == 1:
        return np.array([[parts]])
    rows = [[first, *rest] for first in range(parts + 1) for rest in grid(k - 1, parts - first).tolist()]
    return np.array(rows)


@st.composite
def bounded(draw: st.DrawFn, k: int) -> Constraints:
    """Constraints on domains `a`, `b`, ... that some mixture obeys."""
    least = draw(st.floats(0, 0.9 / k))
    caps = {chr(ord("a") + i): draw(st.floats(least, 1)) for i in range(k - 1) if draw(st.booleans())}
    return Constraints(min_share=least, caps=caps)
