"""Rows that are in no pool: pairs of preferences, answers that a model wrote. They are read as the rows of a pool are.

Letters: n rows asked for, L tokens of the longest of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regimen.core.index import PoolIndex
from regimen.core.measuring import Example
from regimen.data.pool import Rows


class ExampleRows:
    """A table of examples, numbered from 0, of one domain. pad: the token that rows are padded with."""

    def __init__(self, examples: list[Example], *, pad: int) -> None:
        assert examples, "a meter of no rows"
        self.rows, self.pad = examples, pad
        self.index = PoolIndex(
            domains=("examples",),
            offsets=torch.tensor([0, len(examples)]),
            target_tokens=torch.tensor([int(e.learnt[1:].sum()) for e in examples], dtype=torch.int32),
            input_tokens=torch.tensor([len(e.tokens) - 1 for e in examples], dtype=torch.int32),
        )

    def read(self, ids: Tensor, *, positions: bool = False) -> Rows:
        """The rows `ids` (n,), each padded on the right to the longest."""
        chosen = [self.rows[i] for i in ids.tolist()]
        tokens = pad_sequence([e.tokens for e in chosen], batch_first=True, padding_value=self.pad)  # (n, L)
        learnt = pad_sequence([e.learnt for e in chosen], batch_first=True, padding_value=False)  # (n, L)
        lengths = torch.tensor([len(e.tokens) for e in chosen])
        places = torch.arange(tokens.shape[1]).expand_as(tokens) if positions else None
        return Rows(tokens, lengths, places, learnt)
