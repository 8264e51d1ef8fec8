"""The stream: what is served, how often, in which order, and exactly the same after a resume."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.core.draw import draw_labels, largest_remainder, row_probabilities
from regimen.core.errors import ConfigError
from regimen.core.index import PoolIndex
from regimen.core.plan import Plan
from regimen.core.stream import Stream


def index(*sizes: int, tokens: int | torch.Tensor = 8) -> PoolIndex:
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    names = tuple("abcdefgh"[: len(sizes)])
    return PoolIndex(domains=names, offsets=offsets, target_tokens=tokens, fingerprint="f")


def stream(pool: PoolIndex, *, steps: int = 10, batch: int = 4, seed: int = 0, cap: int | None = 4) -> Stream:
    return Stream(pool, seed=seed, batch_size=batch, total_steps=steps, max_epochs=cap)


def serve(s: Stream, n: int) -> torch.Tensor:
    return torch.stack([s.next() for _ in range(n)])


def shares(**weights: float) -> dict[str, float]:
    return dict(weights)


def test_an_epoch_serves_every_row_once_and_the_next_in_another_order() -> None:
    s = stream(index(7, 5), steps=6)
    first, second = serve(s, 3).flatten(), serve(s, 3).flatten()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_a_pass_that_ends_inside_a_batch_loses_nothing() -> None:
    s = stream(index(7, 3), steps=5)
    served = serve(s, 5).flatten()
    assert torch.bincount(served, minlength=10).tolist() == [2] * 10


def test_the_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    a, b, c = (serve(stream(index(30, 30), seed=seed), 10) for seed in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)


def test_mixture_counts_target_tokens_not_rows() -> None:
    tokens = torch.cat([torch.full((4000,), 30), torch.full((4000,), 10)]).int()
    s = stream(index(4000, 4000, tokens=tokens), steps=200, batch=32)
    s.update(Plan(mixture=shares(a=0.5, b=0.5)))
    serve(s, 200)
    assert s.realised()["a"] == pytest.approx(0.5, abs=0.03)
    rows = s.served_rows.double()
    assert float(rows[0] / rows.sum()) == pytest.approx(0.25, abs=0.02)


def test_fixed_counts_carries_the_remainder_so_that_small_shares_are_served() -> None:
    s = stream(index(400, 400), steps=50)
    s.update(Plan(mixture=shares(a=0.98, b=0.02), draw="fixed_counts"))
    serve(s, 50)
    assert s.served_rows.tolist() == [196, 4]


def test_one_domain_draws_one_domain_for_each_part_of_the_batch() -> None:
    s = stream(index(400, 400, 400), steps=20, batch=12)
    s.update(Plan(mixture=shares(a=0.4, b=0.3, c=0.3), draw="one_domain", draw_groups=3))
    owner = s.index.domain_of(serve(s, 20)).view(20, 3, 4)
    assert bool((owner == owner[:, :, :1]).all())
    assert len(owner[:, :, 0].unique()) == 3


def test_one_domain_refuses_parts_that_do_not_divide_the_batch() -> None:
    s = stream(index(40, 40), batch=4)
    with pytest.raises(ConfigError, match="draw_groups"):
        s.update(Plan(mixture=shares(a=0.5, b=0.5), draw="one_domain", draw_groups=3))


def test_a_new_keep_serves_first_what_was_not_served_yet() -> None:
    s = stream(index(20), steps=10)
    seen = set(serve(s, 2).flatten().tolist())
    keep = torch.arange(12)
    s.update(Plan(keep=keep))
    fresh = set(keep.tolist()) - seen
    served = serve(s, 3).flatten().tolist()
    assert set(served[: len(fresh)]) == fresh
    assert sorted(served) == keep.tolist()  # one pass over all that is kept, then the next begins


def test_no_row_is_served_more_often_than_the_cap_and_the_others_fill_the_share() -> None:
    s = stream(index(3, 100), steps=20, cap=2)
    s.update(Plan(mixture=shares(a=0.5, b=0.5)))
    counts = torch.bincount(serve(s, 20).flatten(), minlength=103)
    assert counts[:3].tolist() == [2, 2, 2]
    assert int(counts.max()) <= 2
    assert len(s.warnings) == 1 and "a was served 2 times" in s.warnings[0]


def test_a_budget_beyond_the_cap_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="larger than the data"):
        stream(index(5), steps=10, cap=4)
    stream(index(5), steps=10, cap=None)


def test_a_keep_that_is_decided_again_soon_needs_rows_for_that_long_only() -> None:
    s = stream(index(100), steps=50)
    with pytest.raises(ConfigError, match="larger than the data"):
        s.update(Plan(keep=torch.arange(8)))
    s.update(Plan(keep=torch.arange(8)), rows=16)
    serve(s, 8)
    assert s.available().tolist() == list(range(8, 100))


def test_a_domain_with_no_kept_row_gives_its_share_to_the_others_and_says_so() -> None:
    s = stream(index(10, 10), steps=5)
    s.update(Plan(keep=torch.arange(10), mixture=shares(a=0.2, b=0.8)))
    assert int(s.index.domain_of(serve(s, 5)).max()) == 0
    assert "no row is kept of b" in s.warnings[0]


def test_an_order_changes_the_sequence_but_not_the_rows_of_a_short_budget() -> None:
    plain = serve(stream(index(50, 50), steps=5), 5).flatten()
    s = stream(index(50, 50), steps=5)
    group = s.groups()["all"]
    assert sorted(plain.tolist()) == group.tolist()
    s.update(Plan(order=group))
    assert serve(s, 5).flatten().tolist() == group.tolist()


def test_an_order_under_a_mixture_is_kept_inside_every_domain() -> None:
    s = stream(index(200, 200), steps=10, batch=8)
    mixed = Plan(mixture=shares(a=0.7, b=0.3))
    s.update(mixed)
    groups = s.groups()
    s.update(mixed.with_(order=torch.cat([groups["a"], groups["b"]])))
    ids = serve(s, 10).flatten()
    for k, name in enumerate("ab"):
        mine = ids[s.index.domain_of(ids) == k]
        assert mine.tolist() == groups[name].tolist()


def test_whole_passes_are_ordered_and_the_last_one_is_drawn_first() -> None:
    s = stream(index(8), steps=5)
    assert s.groups()["all"].tolist() == list(range(8))
    s.update(Plan(order=torch.arange(8)))
    served = serve(s, 5).flatten().tolist()
    assert served[:16] == [*range(8), *range(8)]
    assert served[16:] == sorted(served[16:]) and served[16:] != [0, 1, 2, 3]


def test_repeats_and_sampling_weights() -> None:
    s = stream(index(4), steps=2, batch=4)
    s.update(Plan(keep=torch.tensor([0, 1, 2]), repeats=torch.tensor([5, 2, 1])))
    assert torch.bincount(serve(s, 2).flatten(), minlength=4).tolist() == [5, 2, 1, 0]
    s = stream(index(100), steps=100, batch=10, cap=None)
    s.update(Plan(keep=torch.arange(100), sampling_weight=torch.cat([torch.full((50,), 3.0), torch.ones(50)])))
    ids = serve(s, 100).flatten()
    assert float((ids < 50).double().mean()) == pytest.approx(0.75, abs=0.05)


def test_taking_a_mixture_back_is_refused() -> None:
    s = stream(index(10, 10))
    s.update(Plan(mixture=shares(a=0.5, b=0.5)))
    with pytest.raises(ConfigError, match="taken back"):
        s.update(Plan())


def plan_at(step: int, pool: PoolIndex, s: Stream) -> Plan | None:
    """A restless schedule that touches every field of the plan."""
    if step == 3:
        return s.plan.with_(keep=torch.arange(0, pool.rows, 2))
    if step == 6:
        return s.plan.with_(mixture=shares(a=0.2, b=0.8))
    if step == 9:
        return s.plan.with_(order=torch.cat(list(s.groups().values())).flip(0))
    if step == 12:
        return s.plan.with_(mixture=shares(a=0.9, b=0.1), draw="fixed_counts")
    if step == 15:
        return s.plan.with_(keep=torch.arange(pool.rows))
    return None


def run(s: Stream, start: int, stop: int) -> list[list[int]]:
    batches = []
    for step in range(start, stop):
        plan = plan_at(step, s.index, s)
        if plan is not None:
            s.update(plan)
        batches.append(s.next().tolist())
    return batches


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_resume_at_any_step_goes_on_exactly(cut: int) -> None:
    pool = index(33, 41)
    whole = stream(pool, steps=20, batch=7)
    expected = run(whole, 0, 20)
    first = stream(pool, steps=20, batch=7)
    run(first, 0, cut)
    second = stream(pool, steps=20, batch=7)
    second.load_state_dict(first.state_dict())
    assert run(second, cut, 20) == expected[cut:]
    assert second.counts().equal(whole.counts())
    assert second.realised() == whole.realised()


@pytest.mark.parametrize(("change", "word"), [({"seed": 9}, "seed"), ({"batch": 8}, "batch size")])
def test_a_cursor_of_other_settings_is_refused(change: dict[str, int], word: str) -> None:
    state = stream(index(40)).state_dict()
    with pytest.raises(ConfigError, match=word):
        stream(index(40), **change).load_state_dict(state)


def test_counts_are_what_was_served() -> None:
    s = stream(index(13, 9), steps=20, batch=5, cap=None)
    served = torch.tensor(run(s, 0, 20)).flatten()
    assert s.counts().long().equal(torch.bincount(served, minlength=22))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=8).filter(lambda w: sum(w) > 0.1), st.integers(1, 64))
def test_largest_remainder_sums_and_is_within_one(wanted: list[float], total: int) -> None:
    w = torch.tensor(wanted, dtype=torch.float64)
    counts = largest_remainder(w, total)
    assert int(counts.sum()) == total
    assert bool((counts >= 0).all())
    assert float((counts - w * total / w.sum()).abs().max()) < 1 + 1e-9


def test_labels_follow_the_row_probabilities() -> None:
    p = row_probabilities(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, 1.0, 2.0]))
    zero = torch.zeros(3, dtype=torch.float64)
    labels = torch.cat(
        [draw_labels(p, 64, draw="multinomial", groups=1, carry=zero, seed=5, step=t)[0] for t in range(400)]
    )
    observed = torch.bincount(labels, minlength=3) / len(labels)
    assert observed.double().sub(p).abs().max() < 0.01
