"""Virtual steps of a real model: against autograd, in parts, and what they cost in counted operations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from regimen.core.errors import ConfigError
from regimen.core.lookahead import ESTIMATORS, Lookahead, Looked
from regimen.data.pool import Pool
from regimen.runs.experiment import make_pool
from regimen.training.cost import rows_flops
from regimen.training.lookahead import VirtualStep
from regimen.training.meter import RowMeter
from regimen.training.sketching import Moments
from tests.integration.test_meter import RUN, meter_of
from tests.integration.test_sft import corpus as corpus  # three tasks with answers of 1 to 40 words
from tests.support.runs import settings_of

IDS, TARGETS = torch.tensor([7, 0, 33, 80, 12, 5, 64, 2]), torch.arange(4)
LR = 0.5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(corpus: Path, home: Path) -> dict:
    return settings_of(corpus, home, *RUN)


@pytest.fixture(scope="module")
def pool(settings: dict) -> Pool:
    return make_pool(settings, progress=False)


@pytest.fixture(scope="module")
def meter(pool: Pool, settings: dict) -> RowMeter:
    return meter_of(pool, settings, rows=8)


def shares(losses: Tensor) -> Tensor:
    return losses.softmax(0)


def gradient(model: torch.nn.Module, meter: RowMeter, ids: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean losses (n,) and the gradient of their weighted sum, row after row."""
    losses = []
    for row in ids:
        batch = meter.sweeper.batch(row[None])
        logits = model(input_ids=batch.inputs, position_ids=batch.positions).logits[0]
        losses.append(cross_entropy(logits, batch.targets[0]))
    found = torch.autograd.grad((torch.stack(losses) * weights).sum(), list(model.parameters()))
    return torch.stack(losses).detach(), list(found)


def by_hand(meter: RowMeter, scale: list[Tensor] | None = None) -> Looked:
    """The whole of it on a copy of the model."""
    model = copy.deepcopy(meter.sweeper.module.model).eval()
    scale = [torch.ones_like(p) for p in model.parameters()] if scale is None else scale
    losses, _ = gradient(model, meter, IDS, torch.zeros(len(IDS)))
    rows = [gradient(model, meter, row[None], torch.ones(1))[1] for row in IDS]
    c = shares(losses)
    with torch.no_grad():
        for k, (p, s) in enumerate(zip(model.parameters(), scale, strict=True)):
            p -= LR * s * sum(c[i] * rows[i][k] for i in range(len(IDS)))
    ahead, v = gradient(model, meter.target, TARGETS, torch.full((4,), 0.25))
    products = [sum(float((a * b * s).sum()) for a, b, s in zip(row, v, scale, strict=True)) for row in rows]
    return Looked(losses.double(), torch.tensor(products).double(), float(ahead.mean()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_products_are_those_of_autograd(meter: RowMeter, estimator: str) -> None:
    expected = by_hand(meter)
    weights = {name: value.clone() for name, value in meter.sweeper.module.state_dict().items()}
    state = torch.random.get_rng_state()
    found = meter.lookahead(IDS, TARGETS, Lookahead(lr=LR, estimator=estimator), shares=shares)
    assert torch.allclose(found.losses, expected.losses, atol=1e-5)
    assert found.target_loss == pytest.approx(expected.target_loss, abs=1e-5)
    error = (found.products - expected.products).norm() / expected.products.norm()
    assert float(error) < (5e-3 if estimator == "fd" else 1e-4)
    assert all(torch.equal(value, weights[name]) for name, value in meter.sweeper.module.state_dict().items())
    assert all(p.grad is None for p in meter.sweeper.module.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_parts_add_up(pool: Pool, settings: dict, meter: RowMeter) -> None:
    ask = Lookahead(lr=LR, estimator="jvp")
    whole, parts = meter.lookahead(IDS, TARGETS, ask, shares=shares), meter_of(pool, settings, rows=3)
    found = parts.lookahead(IDS, TARGETS, ask, shares=shares)
    assert torch.allclose(found.losses, whole.losses, atol=1e-6)
    assert torch.allclose(found.products, whole.products, atol=1e-6)


def test_no_step_takes_the_gradient_where_the_model_is(meter: RowMeter) -> None:
    found = meter.lookahead(IDS, TARGETS, Lookahead(lr=0.0, estimator="jvp"))
    still = meter.lookahead(IDS, TARGETS, Lookahead(lr=LR, estimator="jvp"), shares=torch.zeros_like)
    assert torch.allclose(found.products, still.products, atol=1e-6)
    assert bool(found.losses.isnan().all())


def test_second_moments_are_a_fixed_preconditioner(meter: RowMeter) -> None:
    named = dict(meter.sweeper.module.model.named_parameters())
    second = {name: torch.rand_like(p) + 0.1 for name, p in named.items()}
    moments = Moments(second, {name: value.square() for name, value in second.items()}, (0.9, 0.999), 1e-3)
    ask = Lookahead(lr=LR, estimator="jvp", adam=True)
    found = VirtualStep(meter.sweeper, meter.target.sweeper, ask, moments=moments).look(IDS, TARGETS, shares)
    expected = by_hand(meter, [1 / (second[name] + 1e-3) for name in named])
    assert torch.allclose(found.products, expected.products, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="second moments"):
        VirtualStep(meter.sweeper, meter.target.sweeper, ask)


def test_a_step_that_is_kept_moves_the_model_and_nothing_else(pool: Pool, settings: dict) -> None:
    meter = meter_of(pool, settings, rows=3)  # in parts
    model = meter.sweeper.module.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ask = Lookahead(lr=LR, estimator="jvp")
    told = meter.lookahead(IDS, TARGETS, ask, shares=shares)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    _, step = gradient(model.eval(), meter, IDS, shares(told.losses).float())
    kept = meter.lookahead(IDS, TARGETS, ask, shares=shares, keep=True)
    assert torch.equal(kept.products, told.products) and kept.target_loss == told.target_loss
    for (name, p), g in zip(model.named_parameters(), step, strict=True):
        assert torch.allclose(p, before[name] - LR * g, atol=1e-6), name
        assert p.grad is None and p.requires_grad
    meter.forget()
    sums, tokens = meter.target.losses(TARGETS)
    assert float((sums / tokens)[: len(TARGETS)].mean()) == pytest.approx(told.target_loss, abs=1e-5)


def counted(meter: RowMeter, ids: Tensor, targets: Tensor, estimator: str) -> tuple[float, float]:
    """Operations of a virtual step by torch's counter, and as charged, in forward and backward passes over `ids`."""
    model = meter.sweeper.module.model.eval()
    batch = meter.sweeper.batch(ids)
    before = meter.sweeper.clock.snapshot("measuring")
    with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused kernel of a CPU
        with FlopCounterMode(display=False) as counter:
            model(input_ids=batch.inputs).logits.sum().backward()
        model.zero_grad(set_to_none=True)
        unit = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            meter.lookahead(ids, targets, Lookahead(lr=LR, estimator=estimator), shares=shares)
    charged = meter.sweeper.clock.since("measuring", before)["flops"]
    model_unit = rows_flops(meter.sweeper.module.training_flops, meter.index.inputs_of(ids))
    return counter.get_total_flops() / unit, charged / model_unit


def alike(meter: RowMeter, count: int) -> Tensor:
    """Rows of alike lengths, so that padding does not blur the count."""
    return meter.index.inputs_of(torch.arange(meter.index.rows)).argsort(stable=True)[-count:]


def test_a_step_by_differences_costs_two_passes_and_a_bit(meter: RowMeter) -> None:
    """1 for the step, 1/2 for half as many target rows, 2/3 for two forward passes: below 2.2."""
    ids, targets = alike(meter, 8), alike(meter.target, 4)
    longer = meter.target.index.inputs_of(targets).max() / meter.index.inputs_of(ids).max()
    found, charged = counted(meter, ids, targets, "fd")
    expected = 1 + 0.5 * float(longer) + 2 / 3
    assert found == pytest.approx(expected, rel=0.08)
    assert charged == pytest.approx(expected, rel=0.15)
    assert found <= 2.2


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_charged_is_what_is_counted(meter: RowMeter, estimator: str) -> None:
    found, charged = counted(meter, alike(meter, 8), alike(meter.target, 4), estimator)
    assert charged == pytest.approx(found, rel=0.2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_adapters_are_charged_for_what_they_need(corpus: Path, home: Path, pool: Pool, estimator: str) -> None:
    wide = ("model.config.hidden_size=64", "model.config.intermediate_size=256", "model.config.num_hidden_layers=3")
    meter = meter_of(pool, settings_of(corpus, home, *RUN, *wide, "model.lora.rank=1"), rows=8)
    found, charged = counted(meter, alike(meter, 8), alike(meter.target, 4), estimator)
    assert charged == pytest.approx(found, rel=0.2)


def test_what_cannot_be_differentiated_is_refused(meter: RowMeter) -> None:
    model = meter.sweeper.module.model
    before = model.config._attn_implementation
    model.config._attn_implementation_internal = "flash_attention_2"
    try:
        for estimator in ("exact", "jvp"):
            with pytest.raises(ConfigError, match="second derivative"):
                meter.lookahead(IDS, TARGETS, Lookahead(estimator=estimator))
    finally:
        model.config._attn_implementation_internal = before
    model.bfloat16()
    try:
        with pytest.raises(ConfigError, match="float32"):
            meter.lookahead(IDS, TARGETS, Lookahead())
    finally:
        model.float()


def test_a_slope_elsewhere_is_autograds(meter: RowMeter) -> None:
    """Of sum_i c_i l_i + L at other parameters than the model's, which stay as they are."""
    c = torch.linspace(0.1, 0.8, len(IDS))
    model = copy.deepcopy(meter.sweeper.module.model).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    at = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {name: value.clone() for name, value in meter.sweeper.module.state_dict().items()}
    found = meter.slope(IDS, c, TARGETS, at=at)
    losses, of_rows = gradient(model, meter, IDS, c)
    target, of_target = gradient(model, meter.target, TARGETS, torch.full((4,), 0.25))
    assert torch.allclose(found.losses, losses.double(), atol=1e-5)
    assert found.target_loss == pytest.approx(float(target.mean()), abs=1e-5)
    for (name, value), a, b in zip(found.gradient.items(), of_rows, of_target, strict=True):
        assert torch.allclose(value, a + b, rtol=1e-3, atol=1e-5), name
        assert torch.equal(found.at[name], at[name])
    assert all(torch.equal(value, weights[name]) for name, value in meter.sweeper.module.state_dict().items())
    assert all(p.grad is None for p in meter.sweeper.module.parameters())
    here = meter.slope(IDS, c, TARGETS)
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in here.at.items())
