"""From scores or similarities to rows: the rules that selectors share. Positions come back best first.

Papers: Gumbel top-k, arXiv 1903.06059; inverse propensity, arXiv 2402.09668; round-robin, RDS+, arXiv 2503.01807;
doubly greedy, the maximum over queries of LESS, arXiv 2402.04333; rank by rank, the retrieval of NEAR in DataFlex.
Differs from the papers: ties go to the lower position everywhere, so that no order of rows depends on a sort's whim.
Letters: N candidates, M queries, k rows kept, R neighbours per query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.errors import ConfigError


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions (k,) of the highest scores (N,)."""
    return scores.argsort(descending=True, stable=True)[:k]  # (k,)


def gumbel_top_k(logits: Tensor, k: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Positions (k,) drawn one after another without replacement from softmax(logits / temperature), logits (N,).

    A temperature of 0 is `top_k`. Rows with logit -inf come last, those with inf first.
    """
    wait = torch.empty(len(logits), dtype=torch.float64).exponential_(generator=generator)  # (N,) > 0
    return top_k(logits.double() - temperature * wait.log(), k)  # (k,); -log of an exponential time is Gumbel noise


def inverse_propensity(density: Tensor, k: int, *, generator: torch.Generator) -> Tensor:
    """Positions (k,) drawn without replacement in proportion to 1 / density, density (N,) above 0."""
    return gumbel_top_k(-density.double().log(), k, generator=generator)  # (k,)


def round_robin(similarity: Tensor, k: int) -> Tensor:
    """Positions (k,): queries in turn, each takes its best candidate not taken yet; similarity (N, M), k <= N."""
    ranked = similarity.argsort(dim=0, descending=True, stable=True).T.contiguous().numpy()  # (M, N)
    place, free = [0] * len(ranked), bytearray(b"\1") * len(similarity)
    taken: list[int] = []
    while len(taken) < k:
        query = len(taken) % len(ranked)
        while not free[row := int(ranked[query, place[query]])]:
            place[query] += 1
        free[row] = 0
        taken.append(row)
    return torch.tensor(taken, dtype=torch.int64)  # (k,)


def doubly_greedy(similarity: Tensor, k: int) -> Tensor:
    """Positions (k,) of the candidates with the highest similarity to any query; similarity (N, M)."""
    return top_k(similarity.amax(dim=1), k)  # (k,)


def rank_by_rank(neighbours: Tensor, k: int) -> Tensor:
    """Positions (k,): the best neighbour of every query, then every second best, and so on, without repeats.

    neighbours: (M, R) int64 candidates, nearest first; negative where an approximate search found too few.
    Unlike `round_robin`, a query whose neighbour is taken loses its turn. Raises ConfigError for too few candidates.
    """
    found = neighbours.T.reshape(-1).tolist()  # R * M
    rows = list(dict.fromkeys(row for row in found if row >= 0))
    if len(rows) < k:
        raise ConfigError(
            "the neighbours of the queries are fewer than the rows to keep",
            got=f"{len(rows)} distinct neighbours, {k} rows to keep",
            do="search more neighbours per query, or keep fewer rows",
        )
    return torch.tensor(rows[:k], dtype=torch.int64)  # (k,)
