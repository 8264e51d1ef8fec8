"""Influence distillation (arXiv 2505.19051): all rows as landmarks, the closed form, a planted function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.core.measuring import Checkpoint, Sketch
from regimen.core.seeding import generator
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.strategies import make_strategies
from regimen.selection.targeted import Targeted
from regimen.signals import distilled_influence as module
from regimen.signals.distilled_influence import DistilledInfluence, median_distance, rbf, ridge
from regimen.signals.embedding import Embedding
from regimen.signals.influence import Influence
from tests.reference.test_near import chosen
from tests.support.vector_meter import VectorMeter, meter_of

RAW = Embedding(normalise=False)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def random_meter(n: int = 50) -> VectorMeter:
    states, gradients = normal(n, 4, seed=1), normal(n, 9, seed=2)
    return meter_of(states, gradients, target_gradients=normal(5, 9, seed=3), subtasks=[2, 3])


def signal(**fields) -> DistilledInfluence:
    return DistilledInfluence(**{"embedding": RAW, **fields})


@pytest.mark.parametrize("sketch", [Sketch(), Sketch(adam="outside")])
@pytest.mark.parametrize("val_agg", ["mean_of_cos", "cos_of_mean"])
def test_all_rows_as_landmarks_without_damping_are_exact(sketch, val_agg):
    meter, ids = random_meter(), torch.arange(50)
    exact = Influence(sketch=sketch, val_agg=val_agg).measure(meter, ids)
    found = signal(landmarks=4096, damping=1e-12, bandwidth=1.0, sketch=sketch, val_agg=val_agg).measure(meter, ids)
    assert found.shape == (50, 5) and found.dtype == torch.float32
    assert torch.allclose(found, exact, atol=1e-5)


def test_the_error_goes_with_the_damping():
    meter, ids = random_meter(), torch.arange(50)
    exact = Influence(sketch=Sketch()).measure(meter, ids)
    dampings = (1e-1, 1e-3, 1e-5, 1e-7)
    errors = [float((signal(damping=d, bandwidth=1.0).measure(meter, ids) - exact).norm()) for d in dampings]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


def test_ridge_minimises_its_objective():
    """K w for w = (K + lambda I)^-1 y is the minimiser of |y - f|^2 + lambda |f|^2 in the kernel's space."""
    points, values = normal(12, 3, seed=4).double(), normal(12, 2, seed=5).double()
    kernel = rbf(points, points, width=0.8) * 2.5  # a diagonal of 2.5
    weights = ridge(kernel, values, damping=0.04)
    root = torch.linalg.cholesky(kernel)  # features of the rows: K = R R^T
    wide = torch.cat([root, torch.eye(12, dtype=torch.float64) * (0.04 * 2.5) ** 0.5])
    best = torch.linalg.lstsq(wide, torch.cat([values, torch.zeros(12, 2, dtype=torch.float64)])).solution
    assert torch.allclose(kernel @ weights, root @ best, atol=1e-9)
    one = ridge(torch.tensor([[4.0]]), torch.tensor([[3.0]]), damping=0.5)
    assert float(one) == pytest.approx(3.0 / 6.0)


def test_kernel_and_its_median():
    points = torch.tensor([[0.0], [3.0], [4.0], [4.0]], dtype=torch.float64)
    assert median_distance(points) == 3.0  # of 1, 1, 3, 4, 4, where 0 does not count
    assert median_distance(points[2:]) == median_distance(points[:1]) == 1.0
    expected = torch.tensor([[1.0, torch.e ** (-9 / 8)]], dtype=torch.float64)
    assert torch.allclose(rbf(points[:1], points[:2], width=2.0), expected)


def test_equals_the_formula_written_out():
    """Ten landmarks: k(x, L) (k(L, L) + damping I)^-1 S_L with the median distance, row by row."""
    meter, ids = random_meter(), torch.arange(50)
    found = signal(landmarks=10, damping=0.2).measure(meter, ids)
    (known,) = [ids for what, ids in meter.asked if what == "gradients none"]
    assert len(known) == 10
    units, wanted = (torch.nn.functional.normalize(g.double()) for g in (meter.gradients, meter.target.gradients))
    points = meter.states_of.double()
    between = sorted(float((points[a] - points[b]).norm()) for i, a in enumerate(known) for b in known[:i])
    width = between[(len(between) - 1) // 2]

    def k(a: int, b: int) -> float:
        return float(torch.exp(-(points[a] - points[b]).square().sum() / (2 * width**2)))

    damped = torch.tensor([[k(a, b) + 0.2 * (a == b) for b in known] for a in known], dtype=torch.float64)
    solved = torch.linalg.inv(damped) @ (units[known] @ wanted.T)
    for row in range(50):
        expected = torch.tensor([k(row, b) for b in known], dtype=torch.float64) @ solved
        assert torch.allclose(found[row].double(), expected, atol=1e-6)


def circle(n: int) -> VectorMeter:
    """Rows on a circle whose gradients turn with the embedding: cosines are smooth functions of it."""
    angle = torch.rand(n, generator=generator(6)) * 2 * torch.pi
    states = torch.stack([angle.cos(), angle.sin()], 1)
    gradients = torch.stack([(2 * angle).cos(), (2 * angle).sin(), angle.sin()], 1)
    return meter_of(states, gradients, target_gradients=normal(4, 3, seed=7))


def test_a_smooth_function_is_recovered_from_few_landmarks():
    meter, ids = circle(600), torch.arange(600)
    exact = Influence(sketch=Sketch()).measure(meter, ids)
    found = signal(landmarks=60, damping=1e-6, bandwidth=0.5).measure(meter, ids)
    assert float((found - exact).abs().max()) < 0.02
    default = signal(landmarks=60).measure(meter, ids)  # the median's bandwidth, a damping of .01
    for column in range(4):
        assert float(torch.corrcoef(torch.stack([default[:, column], exact[:, column]]))[0, 1]) > 0.95
    assert sum(len(asked) for what, asked in meter.asked if "gradients" in what) == 600 + 60 + 60


def test_few_rows_are_embedded_at_once(monkeypatch):
    whole = signal(landmarks=7).measure(random_meter(), torch.arange(50))
    monkeypatch.setattr(module, "_ROWS", 8)
    meter = random_meter()
    assert torch.allclose(signal(landmarks=7).measure(meter, torch.arange(50)), whole, atol=1e-6)
    assert max(len(ids) for _, ids in meter.asked) == 8


def test_the_order_in_which_rows_are_given_does_not_matter():
    ids = torch.arange(5, 45)
    mixed = torch.randperm(40, generator=generator(8))
    one = signal(landmarks=9)
    plain = one.measure(random_meter(), ids)
    assert torch.allclose(plain[mixed], one.measure(random_meter(), ids[mixed]), atol=1e-6)
    assert not torch.allclose(plain, replace(one, seed=1).measure(random_meter(), ids), atol=1e-3)


def test_equal_rows_do_not_break_it():
    meter = random_meter(20)
    meter.states_of[:] = meter.states_of[0]
    found = signal(damping=0.01).measure(meter, torch.arange(20))
    mean = Influence(sketch=Sketch()).measure(meter, torch.arange(20)).mean(0)
    assert torch.allclose(found, (mean / (1 + 0.01 / 20)).expand(20, -1), atol=1e-5), "the shrunk mean"


def test_checkpoints_are_weighed():
    a, b = random_meter(), replace(random_meter(), gradients=normal(50, 9, seed=9))
    both = replace(a, others={"a": a, "b": b}, runs={"warmup": [Checkpoint("a", 0.75), Checkpoint("b", 0.25)]})
    parts = [signal(landmarks=20).measure(meter, torch.arange(50)) for meter in (a, b)]
    found = signal(landmarks=20, run="warmup").measure(both, torch.arange(50))
    assert torch.allclose(found, 0.75 * parts[0] + 0.25 * parts[1], atol=1e-5)


def test_the_method_lets_target_rows_choose_in_turn():
    text = (conf_dir() / "method" / "influence_distillation.yaml").read_text()
    settings = resolve(yaml.safe_load(text)["strategies"], rehearsed(["a"]))
    (placed,) = make_strategies(settings)
    assert isinstance(placed.strategy, Targeted) and placed.strategy.rule == "round_robin"
    by = placed.strategy.by
    assert by.models() == ("",) and (by.landmarks, by.damping, by.bandwidth) == (4096, 0.01, None)
    meter = circle(80)
    assert by.sketch.adam == "scaled"
    exact = replace(by, run=None, embedding=RAW, damping=1e-9, bandwidth=0.5, sketch=Sketch())
    found = chosen(replace(placed.strategy, by=exact), meter, 8)
    best = Influence(sketch=Sketch()).measure(meter, torch.arange(80)).argmax(0).tolist()
    assert len(set(found)) == 8 and found[0] == best[0] and set(best) <= set(found)


def test_what_it_costs_and_which_models_it_asks():
    assert signal().models() == (None,) and not signal().by_row
    assert signal(run="outputs/a", embedding=Embedding(model="outputs/b")).models() == ("outputs/a", "outputs/b")
    assert 1 < signal().passes() < 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"landmarks": 0}, "landmarks"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"damping": 0.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"val_agg": "sum"}, "mean_of_cos"),
    ],
)
def test_settings_that_cannot_work(fields, words):
    with pytest.raises(ConfigError, match=words):
        signal(**fields)


def test_it_needs_a_target_set():
    with pytest.raises(ConfigError, match="target set"):
        signal().measure(replace(random_meter(), targets=None), torch.arange(4))
