"""How the reference tests ask a mixer for its shares."""

from __future__ import annotations

from torch import Tensor

from regimen.core.index import PoolIndex
from regimen.core.strategy import Mixer
from tests.reference.observations import seeing


def shares_of(mixer: Mixer, index: PoolIndex, *, horizon: int = 100, seed: int = 0, step: int = 0) -> Tensor:
    """Checked shares of a mixer at its first decision."""
    seen = seeing(index=index, horizon=horizon, seed=seed, step=step)
    decision = mixer.checked(mixer.decide(mixer.init(index), seen), seen)
    assert decision is not None
    return decision
