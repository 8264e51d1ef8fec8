"""Curriculum (arXiv 1903.09848): pacing in closed form, who may be drawn, and what is drawn in a run of the stream."""

from __future__ import annotations

import math

import pytest
import torch

from regimen.core.errors import ConfigError
from regimen.core.plan import Plan
from regimen.core.stream import Stream
from regimen.selection.curriculum import Curriculum
from regimen.selection.pacing import Pacing
from tests.reference.observations import LOSS, index_of, seeing

LINEAR = Pacing(kind="linear", start=0.1, until=1.0)


@pytest.mark.parametrize("x", [0.0, 0.1, 0.25, 0.49, 0.5, 0.8, 1.0])
def test_pacing_in_closed_form(x: float) -> None:
    part = min(2 * x, 1.0)
    assert Pacing(kind="linear", start=0.2).share(x) == pytest.approx(0.2 + 0.8 * part)
    assert Pacing(kind="root", start=0.2).share(x) == pytest.approx(math.sqrt(0.04 + 0.96 * part))
    assert Pacing(kind="root", start=0.2, power=3).share(x) == pytest.approx((0.008 + 0.992 * part) ** (1 / 3))
    assert Pacing(kind="root", start=0.2, power=1).share(x) == pytest.approx(0.2 + 0.8 * part), "power 1 is linear"
    assert Pacing(kind="step", start=0.3).share(x) == (0.3 if x < 0.5 else 1.0)


def test_baby_steps() -> None:
    """Five equal parts of the rows, one more in every fifth of the run."""
    pacing = Pacing(kind="step", start=0.2, until=0.8, steps=4)
    assert [pacing.share(i / 10) for i in range(11)] == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1, 1])


def test_a_share_never_falls_and_ends_with_all() -> None:
    for kind in ("linear", "root", "step"):
        pacing = Pacing(kind=kind, start=0.05, until=0.7, steps=3)
        shares = [pacing.share(i / 200) for i in range(201)]
        assert shares == sorted(shares) and shares[0] == pytest.approx(0.05) and shares[140:] == [1.0] * 61


def test_published_example_of_competence() -> None:
    """arXiv 1903.09848, figure 2, c0 = 0.01: half of the time gives the linear one 0.505 and the root 0.70714."""
    assert Pacing(kind="linear", start=0.01, until=1).share(0.5) == pytest.approx(0.505)
    assert Pacing(kind="root", start=0.01, until=1).share(0.5) == pytest.approx(0.7071421, abs=1e-6)


def chosen(orderer: Curriculum, scores: list[float], step: int, **more) -> list[int]:
    seen = seeing(scores, step=step, **more)
    return orderer.decide(orderer.init(seen.index), seen).ids.tolist()


def test_the_easiest_rows_come_first_and_ties_go_by_id() -> None:
    scores = [5.0, 1.0, 3.0, 1.0, 9.0, 0.0, 7.0, 8.0, 2.0, 6.0]
    order = [5, 1, 3, 8, 2, 0, 9, 6, 7, 4]
    for step in range(0, 101, 10):
        rows = math.ceil(10 * (0.1 + 0.9 * step / 100) - 1e-9)
        assert chosen(Curriculum(by=LOSS, pacing=LINEAR), scores, step) == order[:rows]
    hardest = chosen(Curriculum(by=LOSS, pacing=LINEAR, descending=True), scores, 0)
    assert hardest == [4] and chosen(Curriculum(by=LOSS, descending=True), [1.0, 1.0], 0) == [0]


def test_every_domain_gives_its_part() -> None:
    """Domain a is easy throughout, b hard: without `by_domain` the first half would be all of a."""
    scores = [float(i) for i in range(40)]
    index = index_of([20, 20])
    half = Pacing(kind="step", start=0.5, until=1)
    assert sorted(chosen(Curriculum(by=LOSS, pacing=half), scores, 0, index=index)) == list(range(20))
    even = sorted(chosen(Curriculum(by=LOSS, pacing=half, by_domain=True), scores, 0, index=index))
    assert even == [*range(10), *range(20, 30)]
    uneven = chosen(Curriculum(by=LOSS, pacing=half, by_domain=True), scores, 0, index=index_of([30, 10]))
    assert sorted(uneven) == [*range(15), *range(30, 35)]


def test_difficulty_stays_as_first_measured_unless_it_is_measured_again() -> None:
    kept, anew = Curriculum(by=LOSS, pacing=LINEAR), Curriculum(by=LOSS, pacing=LINEAR, remeasure=True)
    assert kept.measures_once and not anew.measures_once
    first, later = seeing([3.0, 2.0, 1.0, 0.0]), seeing([0.0, 1.0, 2.0, 3.0], step=50)
    for orderer, expected in ((kept, [3, 2, 1]), (anew, [0, 1, 2])):
        state = orderer.init(first.index)
        state = orderer.advance(state, orderer.checked(orderer.decide(state, first), first), first)
        assert orderer.decide(state, later).ids.tolist() == expected


def test_rows_at_the_cap_make_room_for_harder_ones() -> None:
    orderer = Curriculum(by=LOSS, pacing=LINEAR)
    first = seeing([float(i) for i in range(10)])
    state = orderer.advance(orderer.init(first.index), None, first)
    later = seeing([0.0] * 8, ids=range(2, 10), index=first.index, step=30)  # 0 and 1 were served too often
    decision = orderer.checked(orderer.decide(state, later), later)
    assert decision.ids.tolist() == [2, 3, 4, 5]
    assert "max_epochs_per_domain" in orderer.notes(state, decision, later)[0]
    whole = seeing([0.0] * 10, step=30)
    assert orderer.notes(state, orderer.checked(orderer.decide(state, whole), whole), whole) == []


def serve(replacement: bool, *, steps: int, seed: int = 0) -> tuple[list[list[int]], torch.Tensor]:
    """The stream under a curriculum that is brought up to date at every step, as its callback does."""
    index = index_of([200])
    stream = Stream(index, seed=seed, batch_size=4, total_steps=steps, max_epochs=None)
    orderer = Curriculum(by=LOSS, pacing=Pacing(kind="linear", start=0.05, until=0.5), replacement=replacement)
    scores, batches = torch.arange(200).double(), []
    for step in range(steps):
        seen = seeing(scores, step=step, total_steps=steps, index=index)
        decision = orderer.checked(orderer.decide(orderer.init(index), seen), seen)
        stream.update(Plan(keep=decision.ids, sampling_weight=decision.sampling_weight), rows=4)
        batches.append(stream.next().tolist())
    return batches, stream.counts()


def test_draws_stay_inside_the_share_and_are_uniform_there() -> None:
    """The mean place in the share is the middle, at any time: what was served before does not matter."""
    places = []
    for seed in range(4):
        batches, _ = serve(True, steps=100, seed=seed)
        for step, batch in enumerate(batches):
            rows = math.ceil(200 * min(0.05 + 0.95 * step / 50, 1.0) - 1e-9)
            assert max(batch) < rows
            places += [(row + 0.5) / rows for row in batch]
    assert sum(places) / len(places) == pytest.approx(0.5, abs=4 * 0.2887 / len(places) ** 0.5)


def test_without_replacement_new_rows_come_before_repetitions() -> None:
    batches, counts = serve(False, steps=100)
    assert int(counts.max()) - int(counts.min()) <= 2 and int(counts.sum()) == 400
    for step, batch in enumerate(batches):
        assert max(batch) < math.ceil(200 * min(0.05 + 0.95 * step / 50, 1.0) - 1e-9)


def test_after_the_warm_up_draws_are_those_of_all_rows() -> None:
    late = [row for batch in serve(True, steps=400)[0][200:] for row in batch]
    counts = torch.bincount(torch.tensor(late), minlength=200).double()  # 800 draws of 200 rows, 4 of each
    chi = float(((counts - 4) ** 2 / 4).sum())
    assert abs(chi - 199) < 5 * math.sqrt(2 * 199)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="NaN for 1 of 2 rows"):
        chosen(Curriculum(by=LOSS), [float("nan"), 1.0], 0)
    with pytest.raises(ConfigError, match="remeasure=true"):
        Curriculum(by=LOSS, candidates=10)
    for wrong in (
        {"kind": "exp"},
        {"start": 0.0},
        {"start": 1.5},
        {"until": 0.0},
        {"until": float("nan")},
        {"power": 0.0},
        {"steps": 0},
        {"steps": 1.5},
    ):
        with pytest.raises(ConfigError, match="pacing"):
            Pacing(**wrong)
