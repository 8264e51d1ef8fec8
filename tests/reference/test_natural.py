"""Natural: no mixture at all."""

from __future__ import annotations

from regimen.mixing.natural import Natural
from tests.reference.observations import index_of, seeing


def test_leaves_the_plain_shuffle():
    seen = seeing(index=index_of([3, 1]))
    assert Natural().checked(Natural().decide(Natural().init(seen.index), seen), seen) is None
