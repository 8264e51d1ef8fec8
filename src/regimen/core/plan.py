"""The plan: which rows may be drawn, in what proportion and in what order. Immutable; strategies replace fields.

Letters: N rows of the pool, M rows kept or ordered, K domains.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Draw = Literal["multinomial", "fixed_counts", "one_domain"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """An absent field means the default: every row once, the natural share, a seeded shuffle.

    keep: (M,) int64 sorted ids that may be drawn.
    repeats: (M,) int64 times that each kept row appears in one pass.
    sampling_weight: (M,) float64; where given, a pass draws M rows with replacement in this proportion.
    mixture: share of target tokens by domain name. Without it rows are drawn from the whole pool at once.
    draw: how a global batch of B rows is split over domains under a mixture. `multinomial` draws each row's domain;
        `fixed_counts` rounds B times the share, carrying the remainders over; `one_domain` draws one domain
        for each of `draw_groups` equal parts of the batch.
    order: (M,) int64 ids in the order of service; rows it does not name come after, shuffled. Under a mixture each
        domain is served in this order on its own.
    """

    keep: Tensor | None = None
    repeats: Tensor | None = None
    sampling_weight: Tensor | None = None
    mixture: Mapping[str, float] | None = None
    draw: Draw = "multinomial"
    draw_groups: int = 1
    order: Tensor | None = None

    def with_(self, **fields: object) -> Plan:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Eight bytes in hex that two plans share only if they are equal."""
        return digest_of(*(getattr(self, field.name) for field in dataclasses.fields(self)))


def digest_of(*values: object) -> str:
    """A short digest of tensors and printable values."""
    h = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, Tensor):
            h.update(f"{value.dtype}{tuple(value.shape)}".encode())
            h.update(value.detach().cpu().contiguous().numpy().reshape(-1).data)  # no copy of its bytes
        elif isinstance(value, Mapping):
            h.update(repr(sorted(value.items())).encode())
        else:
            h.update(repr(value).encode())
        h.update(b"\x1f")
    return h.hexdigest()
