"""The files of scores: a table of rows or documents as Parquet, and a manifest that says how it was made.

Letters: n rows, S spans of documents in rows, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regimen.core.files import disk_errors, write_json
from regimen.data.pool import Pool

FILE = "scores.parquet"
MANIFEST = "manifest.json"


def ranks_of(scores: Tensor, first: Tensor) -> Tensor:
    """(n,) int64, 0 the best: the rows `first` in their order, then the others by score, ties and NaN by id."""
    order = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    order = torch.cat([first, order[~torch.isin(order, first)]])
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def table_of(unit: str, pool: Pool, scores: Tensor, ranks: Tensor, kept: Tensor | None) -> Any:
    """The columns of all rows, or of the documents that they hold."""
    import pyarrow as pa

    if unit == "document":
        return _of_documents(pool, scores)
    ids = torch.arange(len(scores))
    columns: dict[str, Any] = {
        "id": ids.numpy(),
        "unit": ["row"] * len(scores),
        "domain": [pool.domains[k] for k in pool.train.index.domain_of(ids).tolist()],
        "score": scores.numpy(),
        "rank": ranks.numpy(),
    }
    if kept is not None:
        columns["kept"] = kept.numpy()
    return pa.table(columns)


def part_of(ids: Tensor, scores: Tensor) -> Any:
    """Scores of a part of the rows, by id; ranks need all of them."""
    import pyarrow as pa

    return pa.table({"id": ids.numpy(), "score": scores.numpy()})


def write_scores(folder: Path, table: Any, told: Mapping[str, Any], *, announced: bool = True) -> None:
    """Write both, whole or not at all; announced: say where, on the screen."""
    import pyarrow.parquet as pq

    with disk_errors(folder):
        temporary = folder / f".{FILE}.tmp"
        pq.write_table(table, temporary)
        temporary.replace(folder / FILE)
    write_json(folder / MANIFEST, {**told, "rows": table.num_rows})  # last: it says that the scores are whole
    if announced:
        print(folder / FILE)


def _of_documents(pool: Pool, row_scores: Tensor) -> Any:
    """A document's score is the mean of its rows' scores, weighted by its tokens in each; NaN rows do not count."""
    import pyarrow as pa

    spans = pool.train.documents(torch.arange(len(row_scores)))
    scores = row_scores[spans.row]  # (S,)
    weight = spans.length.double() * ~scores.isnan()  # (S,)
    count = len(pool.documents)
    sums = torch.zeros(2, count, dtype=torch.float64)
    sums.index_add_(1, spans.document, torch.stack([scores.nan_to_num() * weight, weight]))
    here = torch.unique(spans.document)  # documents of the training split, (D,)
    mean = (sums[0] / sums[1])[here]
    names, domains = pool.documents.ids, pool.documents.domains
    order = ranks_of(mean, torch.empty(0, dtype=torch.int64))
    return pa.table(
        {
            "id": [names[k] for k in here.tolist()],
            "unit": ["document"] * len(here),
            "domain": [domains[k] for k in here.tolist()],
            "score": mean.numpy(),
            "rank": order.numpy(),
        }
    )
