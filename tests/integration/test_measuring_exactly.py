"""What is measured does not depend on dropout, and a step's learning rate is what the step really took."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regimen.core.measuring import Sketch
from regimen.runs.experiment import make_pool
from regimen.training.callbacks.steps import _clipped
from regimen.training.meter import RowMeter
from tests.integration.test_meter import RUN, meter_of
from tests.integration.test_sft import corpus as corpus
from tests.support.runs import settings_of

IDS = torch.tensor([7, 0, 33, 80, 12])


@pytest.fixture(scope="module")
def dropping(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> RowMeter:
    """A meter of a model that drops half of everything in training mode, in which it is."""
    home = tmp_path_factory.mktemp("home")
    settings: dict[str, Any] = settings_of(corpus, home, *RUN)
    meter = meter_of(make_pool(settings, progress=False), settings)
    model = meter.sweeper.module.model
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.5))
    meter.sweeper.module.train()
    return meter


def test_dropout_is_off_in_whatever_is_measured(dropping: RowMeter) -> None:
    """Twice the same, with and without gradients, and training mode is back afterwards."""
    model = dropping.sweeper.module.model
    language = dropping.language
    prompts = [language.prompt("say it"), language.prompt("and more")]
    tokens = dropping.tokens(IDS[:1])[0][None]
    with torch.no_grad():
        drops = not torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert model.training and drops, "the model is no test of dropout"

    def measured() -> list[Tensor]:
        return [
            dropping.losses(IDS)[0],
            dropping.states(IDS, layer=-1, pooling="mean"),
            dropping.sketches(IDS, Sketch(dimensions=64)),
            dropping.sketches(IDS, Sketch(dimensions=64, backend="loop")),
            language.next_log_probabilities(prompts, torch.tensor([3, 4])),
            *language.generate(prompts, max_new_tokens=5),
            language.attention(prompts[0], layer=0),
        ]

    first, second = measured(), measured()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.allclose(first[2], first[3], atol=1e-5)
    assert model.training and model.model.layers[0].mlp.training


@pytest.mark.parametrize(("limit", "norm", "factor"), [(None, 5.0, 1.0), (1.0, None, 1.0), (1.0, 4.0, 0.25), (3, 2, 1)])
def test_what_was_clipped_off_a_gradient_is_taken_off_the_rate(
    dropping: RowMeter, limit: float | None, norm: float | None, factor: float
) -> None:
    """Values of rows are sums over steps as they were taken (DVEmb, In-Run Data Shapley)."""
    module = dropping.sweeper.module
    module.gradient_norm = None if norm is None else torch.tensor(float(norm))
    found = _clipped(SimpleNamespace(gradient_clip_val=limit), module)  # type: ignore[arg-type]
    assert found == pytest.approx(factor, rel=1e-5)
