"""What every selector must satisfy."""

from __future__ import annotations

import torch

from regimen.core.strategy import Selector
from tests.reference.observations import seeing


def kept(
    selector: Selector, scores: list[float], *, ids: list[int] | None = None, seed: int = 0, horizon: int = 1
) -> list[int]:
    """Checked ids, ascending."""
    seen = seeing(scores, ids=ids, seed=seed, horizon=horizon)
    return selector.checked(selector.decide(selector.init(seen.index), seen), seen).ids.tolist()


def check_selector(selector: Selector, scores: list[float], size: int, seed: int) -> None:
    """`size` distinct ids out of those given, repeatable, whatever order the rows are given in."""
    ids = [2 * i + 5 for i in range(len(scores))]
    chosen = kept(selector, scores, ids=ids, seed=seed, horizon=size)
    assert len(set(chosen)) == len(chosen) == size
    assert set(chosen) <= set(ids)
    mixed = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    assert kept(selector, [scores[i] for i in mixed], ids=[ids[i] for i in mixed], seed=seed, horizon=size) == chosen
