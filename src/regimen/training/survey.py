"""Measure domains under the current model without disturbing training. Implements the `Surveyor` that signals use.

Letters: K domains, n rows asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.data.pool import Pool
from regimen.training.gradients import DomainGradients
from regimen.training.sweep import Sweeper


class DomainSurveyor:
    """Sweeps the validation rows, differentiates the loss of each domain, reads tokens and text.

    training, validation: sweep the two splits of `pool`; both charge `measuring`.
    """

    def __init__(self, pool: Pool, *, training: Sweeper, validation: Sweeper) -> None:
        self.pool, self.training, self.validation = pool, training, validation
        self.gradients = DomainGradients(training)

    @property
    def index(self) -> PoolIndex:
        """The training rows."""
        return self.pool.train.index

    def validation_losses(self, rows: int | None) -> tuple[Tensor, Tensor]:
        """Summed losses (K,) float64 in nats and target tokens (K,) of the first `rows` validation rows per domain."""
        index = self.validation.index
        k = len(index.domains)
        ids = torch.cat([index.ids(domain)[:rows] for domain in range(k)])
        measured = self.validation.measure(ids)
        columns = torch.stack([measured.loss, measured.tokens])  # (2, n)
        sums = torch.zeros(2, k, dtype=torch.float64).index_add_(1, index.domain_of(ids), columns)
        return sums[0], sums[1]

    def gradient_gram(self, ids: Tensor, *, parameters: str | None, clip: float | None) -> Tensor:
        """Inner products (K, K) float64 of the gradients of each domain's mean token loss over its rows in `ids`."""
        return self.gradients.gram(ids, parameters=parameters, clip=clip)

    def gradient_moments(self, ids: Tensor, *, parameters: str | None) -> Tensor:
        """(K, 3) float64: squared norm of the mean of per-row gradients, mean of their squared norms, rows."""
        return self.gradients.moments(ids, parameters=parameters)

    def tokens(self, domain: int, limit: int) -> list[Tensor]:
        """Token rows (n_i,) int64 of a domain, whole rows spread evenly over it, up to about `limit` tokens."""
        return self.training.tokens(self._spread(domain, rows=-(-limit // self.pool.seq_len)))

    def texts(self, domain: int, limit: int) -> list[str]:
        """The text of about `limit` rows of a domain, spread evenly over it."""
        return self.training.texts(self._spread(domain, rows=limit))

    def _spread(self, domain: int, *, rows: int) -> Tensor:
        """Ids (n,) of at most `rows` rows of a domain, evenly spaced."""
        ids = self.index.ids(domain)
        if len(ids) <= rows:
            return ids
        return ids[torch.arange(rows) * len(ids) // rows]
