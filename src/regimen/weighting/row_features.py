"""Numbers per row that a weighting model reads, cheap ones: loss, length, novelty and domain.

Letters: n rows of the batch, T tokens, K domains.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEATURES = 4  # beside those that tell domains apart


def features(losses: Tensor, tokens: Tensor, domain: Tensor, rows: Tensor, *, domains: int) -> Tensor:
    """(n, 4 + K) float32: mean loss, the same standardised in the batch, log length, novelty, and the domain one-hot.

    losses, tokens, domain (n,); rows (n, T) token ids, -1 past the end. Statistics leave rows without targets out.
    """
    counted = tokens > 0
    known = losses[counted].double()
    mean, spread = (known.mean(), known.std(correction=0)) if len(known) else (torch.tensor(0.0), torch.tensor(0.0))
    level = ((losses.double() - mean) / (spread + 1e-6)).masked_fill(~counted, 0.0)
    columns = [losses.double().masked_fill(~counted, 0.0), level, tokens.double().log1p() / 10, novelty(rows)]
    return torch.cat([torch.stack(columns, 1), F.one_hot(domain, domains).double()], 1).float()


def novelty(rows: Tensor) -> Tensor:
    """(n,) float64: of a row's distinct pairs of neighbouring tokens, the part that no other row of the batch has."""
    codes = [_pairs(row) for row in rows]
    found, times = torch.unique(torch.cat(codes), return_counts=True)
    once = found[times == 1]
    return torch.tensor([float(torch.isin(own, once).double().mean()) if len(own) else 0.0 for own in codes]).double()


def _pairs(row: Tensor) -> Tensor:
    """Distinct numbers of the pairs of neighbouring tokens of a row (T,)."""
    tokens = row[row >= 0]
    found: Tensor = torch.unique(tokens[:-1] * 2**31 + tokens[1:])
    return found
