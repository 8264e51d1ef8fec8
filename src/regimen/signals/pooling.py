"""Hidden states of a row's tokens to one vector.

Papers: position-weighted mean, RDS+, arXiv 2503.01807 (weight of token t in proportion to t).
Letters: b rows, T positions, w width of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import POOLINGS, Pooling


def pool_states(states: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Vectors (b, w) float32 of states (b, T, w) of rows of `lengths` (b,) tokens, padded on the right.

    A row without tokens gives zeros. Raises ConfigError for an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ConfigError("unknown pooling of hidden states", got=pooling, allowed=", ".join(POOLINGS))
    place = torch.arange(1, states.shape[1] + 1, device=states.device)  # (T,)
    within = place <= lengths[:, None].to(states.device)  # (b, T)
    if pooling == "last":
        weight = (place == lengths[:, None].to(states.device)).float()  # (b, T)
    else:
        weight = within * (place.float() if pooling == "position_weighted" else 1.0)  # (b, T)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btw->bw", weight, states.float().masked_fill(~within[..., None], 0.0))  # (b, w)
