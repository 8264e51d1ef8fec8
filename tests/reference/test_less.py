"""LESS (arXiv 2402.04333): brute force, first-order effect of a step, invariances, and a pool with planted rows."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.measuring import Checkpoint, Example, Sketch
from regimen.core.seeding import generator
from regimen.selection.targeted import Targeted
from regimen.signals import influence
from regimen.signals.influence import Influence
from tests.reference.observations import seeing
from tests.support.exact_meter import ExactMeter, State, TinyLM, flat_gradient, summed_loss
from tests.support.vector_meter import meter_of

V = 5
WHOLE = Sketch(kind="whole")
INSIDE, OUTSIDE = Sketch(kind="whole", adam="inside"), Sketch(kind="whole", adam="outside")


def row(tokens: list[int], learnt: int = 2) -> Example:
    """A row whose last `learnt` tokens are learnt."""
    return Example(torch.tensor(tokens), torch.arange(len(tokens)) >= len(tokens) - learnt)


def state(seed: int) -> State:
    """A model, and moments as if it had been trained."""
    model = TinyLM(V, width=3, seed=seed)
    draw = torch.Generator().manual_seed(100 + seed)
    size = sum(p.numel() for p in model.parameters())
    first = 0.1 * torch.randn(size, generator=draw, dtype=torch.float64)
    return State(model, first, first**2 + 0.01 * torch.rand(size, generator=draw, dtype=torch.float64))


POOL = [row([0, 1, 2]), row([3, 1, 4, 0], 3), row([2, 2], 1), row([4, 0, 1, 3]), row([1, 4, 2], 0)]
TARGETS = {"arithmetic": [row([1, 2, 3]), row([0, 4, 4])], "logic": [row([3, 0], 1)]}


def meter() -> ExactMeter:
    """A pool of five rows, the last one without target tokens, three target rows, and a run of two checkpoints."""
    return ExactMeter(
        state(0),
        {"pool": POOL},
        V,
        targets=TARGETS,
        others={"a": state(1), "b": state(2)},
        runs={"warmup": [Checkpoint("a", 0.7), Checkpoint("b", 0.3)]},
    )


def measured(signal: Influence, at: ExactMeter | None = None, ids: Tensor | None = None) -> Tensor:
    at = at or meter()
    return signal.measure(at, torch.arange(at.index.rows) if ids is None else ids)


def by_differences(model: TinyLM, example: Example) -> list[float]:
    """The gradient of a row's mean loss by central differences, which knows nothing of autograd."""
    out = []
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for place in range(len(flat)):
                sides = []
                for step in (1e-5, -1e-5):
                    flat[place] += step
                    sides.append(float(summed_loss(model, example)) / int(example.learnt.sum()))
                    flat[place] -= step
                out.append((sides[0] - sides[1]) / 2e-5)
    return out


def cosine(a: list[float], b: list[float]) -> float:
    inner = [math.fsum(x * y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b))]
    return inner[0] / math.sqrt(inner[1] * inner[2])


@pytest.mark.parametrize("mode", ["inside", "outside", "none"])
def test_equals_the_formula_written_out(mode):
    """T1: sum over checkpoints of weighted cosines between Adam's direction and the target's gradient."""
    found = measured(Influence(run="warmup", sketch=replace(WHOLE, adam=mode)))
    assert found.shape == (5, 3) and found.dtype == torch.float32
    targets = [*TARGETS["arithmetic"], *TARGETS["logic"]]
    for i, j in [(i, j) for i in range(4) for j in range(3)]:
        wanted = 0.0
        for weight, (model, first, second) in ((0.7, state(1)), (0.3, state(2))):
            g, step = by_differences(model, POOL[i]), []
            for value, m, v in zip(g, first.tolist(), second.tolist(), strict=True):
                m, v = 0.9 * m + 0.1 * value, 0.999 * v + 0.001 * value**2
                below = {"inside": math.sqrt(v + 1e-8), "outside": math.sqrt(v) + 1e-8}
                step.append(value if mode == "none" else m / below[mode])
            wanted += weight * cosine(step, by_differences(model, targets[j]))
        assert float(found[i, j]) == pytest.approx(wanted, abs=1e-6)


def test_a_row_without_target_tokens_has_no_influence():
    for mode in ("inside", "none"):
        assert torch.equal(measured(Influence(run="warmup", sketch=replace(WHOLE, adam=mode)))[4], torch.zeros(3))


def test_first_order_effect_of_a_step():
    """T2: a step of SGD on row i changes loss j by -lr <g_i, g_j>, up to an error that falls 4 times as lr halves."""
    at = meter()
    ids = torch.arange(4)
    lengths = [
        part.sketches(torch.arange(part.index.rows), WHOLE).norm(dim=1)[:4] for part in (at, at.target)
    ]  # (4,), (3,)
    inner = measured(Influence(sketch=WHOLE), at, ids) * lengths[0][:, None] * lengths[1]
    targets = [*TARGETS["arithmetic"], *TARGETS["logic"]]

    def mean_loss(model: TinyLM, example: Example) -> Tensor:
        return summed_loss(model, example) / example.learnt.sum()

    for i in range(4):
        errors = []
        for rate in (0.02, 0.01):
            model = state(0).model
            gradient = flat_gradient(model, mean_loss(model, POOL[i]))
            before = [mean_loss(model, j).item() for j in targets]
            weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
            torch.nn.utils.vector_to_parameters(weights - rate * gradient, model.parameters())
            change = torch.tensor([mean_loss(model, j).item() for j in targets]) - torch.tensor(before)
            errors.append((change + rate * inner[i]).abs().max())
        assert 3 < float(errors[0] / errors[1]) < 5


def test_lengths_of_gradients_do_not_count():
    """T3: summed in place of mean losses scale each gradient by its own positive number."""
    at = meter()
    assert torch.allclose(
        measured(Influence(sketch=replace(WHOLE, reduction="sum")), at),
        measured(Influence(sketch=WHOLE), at),
        atol=1e-6,
    )


def test_scaled_weights_scale_all_values():
    at = meter()
    scaled = replace(at, runs={"warmup": [Checkpoint(c.path, 3 * c.weight) for c in at.runs["warmup"]]})
    signal = Influence(run="warmup", sketch=INSIDE)
    assert torch.allclose(measured(signal, scaled), 3 * measured(signal, at), atol=1e-6)


def test_values_follow_their_rows():
    at, mixed = meter(), torch.tensor([3, 0, 4, 1, 2])
    signal = Influence(run="warmup", sketch=INSIDE)
    assert signal.by_row
    assert torch.allclose(measured(signal, at, mixed), measured(signal, at)[mixed], atol=1e-6)
    assert torch.allclose(measured(signal, at, mixed[:2]), measured(signal, at)[mixed[:2]], atol=1e-6)


def subtask_max(values: Tensor, at: ExactMeter) -> Tensor:
    """The highest mean over a subtask's columns, (n,)."""
    owner = at.target.index.domain_of(torch.arange(values.shape[1]))
    return torch.stack([values[:, owner == s].mean(1) for s in range(len(at.targets))], 1).amax(1)


@pytest.mark.parametrize("val_agg", ["mean_of_cos", "cos_of_mean"])
def test_a_subtask_twice_changes_no_maximum(val_agg):
    at = meter()
    twice = replace(at, targets={**TARGETS, "arithmetic again": TARGETS["arithmetic"]})
    signal = Influence(run="warmup", sketch=INSIDE, val_agg=val_agg)
    once = subtask_max(measured(signal, at), at)
    assert torch.allclose(once, subtask_max(measured(signal, twice), twice), atol=1e-6)


def test_averages_of_cosines_and_of_gradients():
    """T6: the same with one row per subtask; with several, the cosine with the mean gradient."""
    single = replace(meter(), targets={"arithmetic": TARGETS["arithmetic"][:1], "logic": TARGETS["logic"]})
    signal = Influence(run="warmup", sketch=INSIDE)
    gradients = replace(signal, val_agg="cos_of_mean")
    assert torch.allclose(measured(signal, single), measured(gradients, single), atol=1e-6)
    at = meter()
    found = measured(replace(gradients, run=None), at)
    assert torch.equal(found[:, 0], found[:, 1])
    mean = at.target.sketches(torch.arange(2), WHOLE).mean(0)
    updates = at.sketches(torch.arange(4), INSIDE)
    assert torch.allclose(found[:4, 0], torch.cosine_similarity(updates, mean[None]), atol=1e-6)
    means = measured(replace(signal, run=None), at)[:, :2].mean(1)
    assert float((found[:, 0] - means).abs().max()) > 0.01


def test_both_sides_share_their_signs_at_every_checkpoint():
    """The plain gradient of a row that is a target row, too, points where the target points, in any sketch."""
    at = replace(meter(), targets={"pool": POOL[:4]})
    signal = Influence(run="warmup", sketch=Sketch(dimensions=4, adam="none"))
    assert torch.allclose(measured(signal, at)[:4].diagonal(), torch.ones(4), atol=1e-6)


def test_rows_are_measured_in_parts(monkeypatch):
    at = meter()
    signal = Influence(run="warmup", sketch=INSIDE)
    whole = measured(signal, at)
    monkeypatch.setattr(influence, "_ROWS", 2)
    at.largest.clear()
    assert torch.allclose(measured(signal, at), whole, atol=1e-7)
    assert at.largest == [3, 2, 2, 1] * 2  # the target rows, then the pool, at each checkpoint


def test_costs_and_models():
    assert (Influence().passes(), Influence().models()) == (3, (None,))
    assert (Influence(run="warmup").passes(), Influence(run="warmup").models()) == (12, ("warmup",))


def test_what_cannot_be_measured():
    with pytest.raises(ConfigError, match=r"val_agg=max"):
        Influence(val_agg="max")
    with pytest.raises(ConfigError, match="no target set"):
        measured(Influence(), replace(meter(), targets=None))


def warmed_up(pool: list[Example], targets: dict[str, list[Example]], *, seed: int) -> ExactMeter:
    """A pool of eight letters, and two epochs of Adam on 24 of its rows, a checkpoint after each."""
    model = TinyLM(8, width=8, seed=seed)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()  # (P,)
    first, second, steps = torch.zeros_like(weights), torch.zeros_like(weights), 0
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:24]
    others: dict[str, State] = {}
    for epoch in ("first", "second"):
        for batch in drawn.split(4):
            losses = [summed_loss(model, pool[i]) / pool[i].learnt.sum() for i in batch.tolist()]
            gradient, steps = flat_gradient(model, sum(losses) / 4), steps + 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            weights = weights - 0.01 * (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
            torch.nn.utils.vector_to_parameters(weights, model.parameters())
        others[epoch] = State(copy.deepcopy(model), first, second)
    kept = [Checkpoint(epoch, 0.5) for epoch in others]
    return ExactMeter(State(model), {"pool": pool}, 8, targets=targets, others=others, runs={"warmup": kept})


@pytest.mark.parametrize("seed", range(3))
def test_finds_planted_rows(seed):
    """T4: half of the pool maps letters as the target does, half to random letters."""
    draw = torch.Generator().manual_seed(seed)
    mapping = torch.randperm(8, generator=draw)

    def example(planted: bool) -> Example:
        asked = torch.randint(8, (6,), generator=draw)
        said = mapping[asked] if planted else torch.randint(8, (6,), generator=draw)
        return Example(torch.stack([asked, said], 1).flatten(), torch.tensor([False, True]).repeat(6))

    pool = [example(i < 40) for i in range(80)]
    at = warmed_up(pool, {name: [example(True) for _ in range(8)] for name in "ab"}, seed=seed)
    scores = subtask_max(measured(Influence(run="warmup", sketch=INSIDE), at), at)
    planted, others = scores[:40], scores[40:]
    assert (planted[:, None] > others).double().mean() > 0.9  # area under the ROC curve
    by = Influence(run="warmup", sketch=INSIDE)
    seen = replace(seeing(measured(by, at), by=by), target=at.target.index)
    kept = Targeted(by=by, ratio=0.25).decide(None, seen)
    assert kept.tolist() == scores.argsort(descending=True)[:20].tolist()
    assert int((kept < 40).sum()) >= 18


# ---- contrast: ours, not the paper's ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "others"), [("inside", 2), ("none", 3), ("none", 99)])
def test_contrast_takes_off_the_mean_influence_on_other_rows(mode: str, others: int) -> None:
    """By its definition: cosines with the plain gradients of R rows, without a row's own, over checkpoints."""
    signal = Influence(run="warmup", sketch=replace(WHOLE, adam=mode), contrast=others)
    plain = measured(replace(signal, contrast=None))
    at, expected = meter(), plain.clone()
    drawn = torch.randperm(5, generator=generator("contrast", 0, 5))[:others].tolist()
    for i in range(5):
        for weight, path in ((0.7, "a"), (0.3, "b")):
            there = replace(at, state=at.others[path])
            update = there.sketches(torch.tensor([i]), signal.sketch)[0].tolist()
            gradients = there.sketches(torch.arange(5), WHOLE).tolist()
            rest = [k for k in drawn if k != i]
            found = [cosine(update, gradients[k]) if i != 4 and k != 4 else 0.0 for k in rest]  # row 4 has none
            expected[i] -= weight * math.fsum(found) / len(rest)
    assert torch.allclose(measured(signal), expected, atol=1e-6)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_contrast_does_not_depend_on_how_rows_are_asked_for() -> None:
    signal = Influence(sketch=WHOLE, contrast=3)
    whole = measured(signal)
    assert torch.allclose(torch.cat([measured(signal, ids=torch.tensor([i])) for i in (3, 0)]), whole[[3, 0]])


def test_a_row_like_all_others_wins_for_any_target_without_contrast() -> None:
    """Four groups of rows: what a group shares, what all share, and much that is a row's own; and a row of nothing else
    than what all share."""
    groups, own = torch.eye(4).repeat_interleave(5, 0), 2 * torch.eye(20)
    rows = torch.cat([groups, torch.full((20, 1), 0.9), own], 1)
    rows = torch.cat([rows, torch.eye(25)[4:5]])
    target = torch.zeros(1, 25)
    target[0, [1, 4]] = 1.0  # of the second group
    at = meter_of(torch.zeros(21, 1), rows, target_gradients=target)
    best = {}
    for contrast in (None, 21, 8):
        values = Influence(sketch=WHOLE, contrast=contrast).measure(at, torch.arange(21))[:, 0]
        best[contrast] = values.argsort(descending=True)
    assert int(best[None][0]) == 20
    assert sorted(best[21][:5].tolist()) == sorted(best[8][:5].tolist()) == [5, 6, 7, 8, 9]


def test_contrast_counts_rows() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        Influence(contrast=0)
    with_it, without = Influence(contrast=10), Influence()
    assert with_it.work(100) == without.work(110)
