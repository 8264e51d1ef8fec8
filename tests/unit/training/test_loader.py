"""Grouping by length: the same rows in a global batch, alike ones in a micro-batch, on every number of ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from regimen.core.index import PoolIndex
from regimen.core.measuring import Example
from regimen.core.stream import Stream
from regimen.training.examples import ExampleRows
from regimen.training.loader import PlannedLoader

LENGTHS = torch.randint(2, 40, (64,), generator=torch.Generator().manual_seed(0)).tolist()


class Lengths(ExampleRows):
    """Rows of these many tokens, each its own id."""

    def __init__(self) -> None:
        rows = [Example(torch.full((n,), i), torch.ones(n, dtype=torch.bool)) for i, n in enumerate(LENGTHS)]
        super().__init__(rows, pad=0)
        self.index = PoolIndex(**{**vars(self.index), "fingerprint": "f"})


def loader(rank: int, world: int, accumulation: int, *, grouped: bool) -> PlannedLoader:
    table = Lengths()
    stream = Stream(table.index, seed=3, batch_size=16, total_steps=4, max_epochs=1)
    layout = {"rank": rank, "world": world, "accumulation": accumulation}
    return PlannedLoader(table, stream, **layout, plans=Path("unused"), group_by_length=grouped)


def test_the_plan_still_says_which_rows_a_batch_holds() -> None:
    plain, grouped = (loader(0, 1, 4, grouped=g) for g in (False, True))
    for a, b in zip(plain, grouped, strict=True):
        assert sorted(plain.global_ids.tolist()) == sorted(grouped.global_ids.tolist())
        assert (a.global_rows, a.global_tokens) == (b.global_rows, b.global_tokens)


def test_micro_batches_hold_alike_lengths_over_all_ranks() -> None:
    ranks = [loader(rank, 2, 4, grouped=True) for rank in range(2)]
    longest = []
    for parts in zip(*ranks, strict=True):
        lengths = torch.cat([part.lengths for part in parts])
        if parts[0].micro == 0:
            longest, seen = [], []
        assert not longest or int(lengths.min()) >= max(longest), "the next longer rows"
        longest.append(int(lengths.max()))
        seen += [i for part in parts for i in part.ids.tolist()]
        if parts[0].micro == 3:
            assert sorted(seen) == sorted(ranks[0].global_ids.tolist()), "every row once"
            assert torch.equal(ranks[0].global_ids, ranks[1].global_ids)


def test_it_pads_less() -> None:
    padded = [
        sum(batch.inputs.numel() - int(batch.lengths.sum()) for batch in loader(0, 1, 4, grouped=grouped))
        for grouped in (False, True)
    ]
    assert padded[1] < padded[0] / 2
