"""What is kept small for 10^9 rows agrees, bit for bit, with what is said in the plainest way."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.errors import ConfigError
from regimen.core.footprint import Footprint
from regimen.core.index import PoolIndex
from regimen.core.lanes import Lanes, id_type
from regimen.core.plan import Plan, digest_of
from regimen.core.ranks import ascending, inverse, is_permutation, stable_rank
from regimen.core.stream import Stream
from tests.unit.core.plain_lanes import PlainLanes

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 1)


@st.composite
def plans(draw: st.DrawFn, rows: int, domains: int) -> Plan:
    """Any plan over `rows` rows."""
    fields: dict[str, Any] = {}
    if draw(st.booleans()):
        keep = sorted(draw(st.sets(st.integers(0, rows - 1), min_size=1)))
        fields["keep"] = torch.tensor(keep)
        what = draw(st.sampled_from(["nothing", "repeats", "sampling_weight"]))
        if what == "repeats":
            fields["repeats"] = torch.tensor(draw(st.lists(st.integers(1, 3), min_size=len(keep), max_size=len(keep))))
        if what == "sampling_weight":
            fields["sampling_weight"] = torch.linspace(1, 3, len(keep), dtype=torch.float64)
    if draw(st.booleans()):
        ordered = draw(st.permutations(range(rows)))
        fields["order"] = torch.tensor(ordered[: draw(st.integers(1, rows))])
    return Plan(**fields)


def plain(stream: Stream) -> Stream:
    """The same stream over plain lanes."""
    lanes = stream._lanes
    stream._lanes = PlainLanes(lanes.index, seed=lanes.seed, cap=lanes.cap, needed=stream._rows_needed)  # type: ignore[assignment]
    return stream


def outcome(call: Any) -> Any:
    """What a call gives, or the words of its refusal."""
    try:
        return call()
    except ConfigError as error:
        return str(error)


def agree(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.equal(other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            agree(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            agree(a, b)
    else:
        assert one == other


@settings(max_examples=40)
@given(sizes=SIZES, cap=st.sampled_from([None, 1, 2, 5, 300]), seed=st.integers(0, 3), data=st.data())
def test_lean_lanes_serve_what_plain_ones_do(sizes: list[int], cap: int | None, seed: int, data: st.DataObject) -> None:
    """Batches, counts, groups and saved states, over several plans, with a mixture from some time on."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    index = PoolIndex(domains=tuple("abcd"[: len(sizes)]), offsets=offsets, target_tokens=8, fingerprint="f")
    rows = index.rows

    def make() -> Stream:
        return Stream(index, seed=seed, batch_size=3, total_steps=(cap or 4) * rows // 3, max_epochs=cap)

    if (cap or 4) * rows < 3:
        return
    lean, other = make(), plain(make())
    mixture = {name: 1 / len(sizes) for name in index.domains}
    mixed_from = data.draw(st.integers(0, 3))
    for number in range(3):
        plan = data.draw(plans(rows, len(sizes))).with_(mixture=mixture if number >= mixed_from else None)
        agree(*(outcome(partial(s.update, plan, rows=1)) for s in (lean, other)))
        for _ in range(data.draw(st.integers(0, 8))):
            agree(*(outcome(s.next) for s in (lean, other)))
        for what in ("counts", "groups", "available", "state_dict"):
            agree(*(outcome(getattr(s, what)) for s in (lean, other)))
        agree(lean._lanes.left(), other._lanes.left())
    again = make()
    again.load_state_dict(lean.state_dict())
    agree(*(outcome(s.next) for s in (again, other)))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_shuffle_does_not_depend_on_the_type_of_its_ids(dtype: torch.dtype) -> None:
    for n in (1, 2, 100, 70_000):
        one, other = (torch.Generator().manual_seed(n) for _ in range(2))
        assert torch.randperm(n, generator=one, dtype=dtype).long().equal(torch.randperm(n, generator=other))
        assert one.get_state().equal(other.get_state())
    assert id_type(2**31 - 1) == torch.int32 and id_type(2**31) == torch.int64


def test_what_a_stream_keeps_of_a_row() -> None:
    """One byte for its times served, four for its place in the pass; with an order four for its rank, eight for it."""
    rows = 10_000
    index = PoolIndex(domains=("a", "b"), offsets=torch.tensor([0, 4000, rows]), target_tokens=8)
    s = Stream(index, seed=0, batch_size=8, total_steps=rows // 8, max_epochs=4)
    s.next()
    assert kept(s) == 5 * rows == Footprint(rows=rows).total
    s.update(Plan(order=torch.arange(rows).flip(0)))
    s.next()
    assert kept(s) == (5 + 4 + 8) * rows == Footprint(rows=rows, ordered=True).total
    s = Stream(index, seed=0, batch_size=8, total_steps=rows // 8, max_epochs=4)
    s.update(Plan(keep=torch.arange(0, rows, 2)))
    s.next()
    assert kept(s) == rows + (4 + 8) * rows // 2 == Footprint(rows=rows, kept=0.5).total


def test_what_an_index_keeps_of_a_row() -> None:
    tokens, offsets = torch.ones(50, dtype=torch.int32), torch.tensor([0, 50])
    ragged = PoolIndex(domains=("a",), offsets=offsets, target_tokens=tokens)
    assert isinstance(ragged.target_tokens, torch.Tensor)
    assert ragged.target_tokens.nbytes == Footprint(rows=50, ragged=True).index
    both = PoolIndex(domains=("a",), offsets=offsets, target_tokens=tokens, input_tokens=tokens)
    assert both.input_tokens is not None
    assert 2 * both.input_tokens.nbytes == Footprint(rows=50, examples=True).index


def kept(stream: Stream) -> int:
    """Bytes of all tensors of a stream, large ones alone, each counted once."""
    lanes: Lanes = stream._lanes
    fields = [lanes._base, lanes._rank, lanes.plan.order, lanes.plan.keep]
    fields += [part for lane in lanes.lanes for part in (lane.queue, lane.ids)]
    tensors = [f for f in fields if isinstance(f, torch.Tensor)]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


@given(st.lists(st.integers(-3, 12), max_size=12))
def test_positions_need_no_sorting(keys: list[int]) -> None:
    given_keys = torch.tensor(keys, dtype=torch.int64)
    assert is_permutation(given_keys) == (bool(keys) and sorted(keys) == list(range(len(keys))))
    if is_permutation(given_keys):
        assert inverse(given_keys).equal(given_keys.argsort(stable=True))
    assert ascending(given_keys) == (sorted(set(keys)) == keys)


@given(st.lists(st.tuples(st.sampled_from([-1.0, -0.0, 0.0, 2.0]), st.integers(0, 99)), unique_by=lambda r: r[1]))
def test_ranks_are_places_in_a_sorted_list(rows: list[tuple[float, int]]) -> None:
    for given_rows in (rows, sorted(rows, key=lambda row: row[1])):
        values = torch.tensor([value for value, _ in given_rows], dtype=torch.float64)
        ties = torch.tensor([tie for _, tie in given_rows], dtype=torch.int64)
        expected = [sorted(given_rows).index(row) for row in given_rows]
        assert stable_rank(values, ties=ties).tolist() == expected


def test_tokens_by_domain_are_whole_sums() -> None:
    tokens = torch.randint(0, 1 << 20, (5000,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    index = PoolIndex(domains=("a", "b", "c"), offsets=torch.tensor([0, 1200, 1200, 5000]), target_tokens=tokens)
    expected = [float(sum(tokens[:1200].tolist())), 0.0, float(sum(tokens[1200:].tolist()))]
    assert index.domain_tokens().tolist() == expected
    index.domain_tokens()[0] = -1.0
    assert index.domain_tokens().tolist() == expected, "a caller's change is its own"


@pytest.mark.parametrize("value", [torch.arange(6), torch.zeros(2, 3), torch.tensor(5), torch.zeros(0)])
def test_a_digest_is_that_of_the_bytes(value: torch.Tensor) -> None:
    h = hashlib.blake2b(digest_size=8)
    h.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes() + b"\x1f")
    assert digest_of(value) == h.hexdigest()
