"""The warm-up that every weighter has: until it ends a run is one without weights, bit for bit, and costs no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regimen.cli import conf_dir
from regimen.core.errors import ConfigError
from regimen.runs.experiment import make_experiment, make_pool
from regimen.runs.handover import rehearsed, resolve
from regimen.runs.strategies import make_strategies
from tests.contract.test_methods import METHODS as METHODS_OF_ALL
from tests.contract.test_methods import NEEDED
from tests.integration.test_sft import corpus as corpus  # three tasks with answers of 1 to 40 words
from tests.support.runs import DOMAINS, compose_settings, lines, run, settings_of

COMMON = (
    *("dataset=sft_files", "objective=sft", "dataset.seq_len=256", "dataset.domain_field=task", "dataset.overlap.n=0"),
    *("dataset.tokenizer.kind=bytes", "budget.steps=6", "trainer.micro_batch_size=4", "trainer.log_every=1"),
    *("+model.config.attention_dropout=0.2", "evaluation.at=[1]", "optimizer.lr=0.03"),
    "dataset.target={path: null, from: [echo], rows_per_subtask: 4, seed: 0}",
)
BEGIN = 3
METHODS = {
    "constant": ("strategies.constant.weight=0.5",),  # a row by itself
    "focal": ("strategies.focal.norm=sum",),  # tokens of the whole batch
    "group_dro": ("strategies.group_dro.step_size=1.0",),  # follows losses step by step
    "lr_matched": ("strategies.lr_matched.multiplier=0.5",),  # moves the learning rate
    # Measures rows and the target set.
    "adapt": ("strategies.adapt.every=50", "strategies.adapt.tau=0.05", "strategies.adapt.centred=true"),
    "scalebio": ("strategies.scalebio.score_lr=0.3",),  # is taught
    "shuffled_weights": (),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def trained(corpus: Path, home: Path, method: str, *more: str) -> Path:
    return run(corpus, home, *COMMON, f"method={method}", *more, f"run_dir={home}/{method}")


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in lines(folder / "record.jsonl") if row["kind"] == kind]


def of_training(folder: Path, key: str) -> list[float]:
    return [row[key] for row in lines(folder / "metrics.jsonl") if row["split"] == "train"]


@pytest.fixture(scope="module")
def plain(corpus: Path, home: Path) -> Path:
    return trained(corpus, home, "natural")


@pytest.mark.parametrize("method", METHODS)
def test_until_it_ends_a_run_is_one_without_weights(corpus: Path, home: Path, plain: Path, method: str) -> None:
    """The last loss before the first weighted step shows the model that plain steps made; costs tell what was asked."""
    folder = trained(corpus, home, method, f"strategies.{method}.warmup_steps={BEGIN}", *METHODS[method])
    losses, others = of_training(folder, "loss"), of_training(plain, "loss")
    assert losses[: BEGIN + 1] == others[: BEGIN + 1]
    assert losses[BEGIN + 1 :] != others[BEGIN + 1 :]
    rates = of_training(folder, "effective_lr_multiplier")
    assert rates[:BEGIN] == pytest.approx([1.0] * BEGIN, abs=1e-6)
    spent, spent_plain = of_training(folder, "flops"), of_training(plain, "flops")
    assert spent[:BEGIN] == spent_plain[:BEGIN], "nothing is measured"
    if method not in ("constant", "lr_matched"):
        assert spent[BEGIN] > spent_plain[BEGIN]
    assert [row["step"] for row in told(folder, "lessons")] in ([], [BEGIN])


def test_a_part_of_the_run_and_what_it_costs(corpus: Path, home: Path) -> None:
    """`check` counts what is measured after the warm-up alone."""
    rows = {}
    for part in ("0", "0.5", "4"):
        settings = settings_of(corpus, home, *COMMON, "method=scalebio", f"strategies.scalebio.warmup_steps={part}")
        experiment = make_experiment(settings, make_pool(settings, progress=False), meta=True)
        (placed,) = [p for p in experiment.strategies if p.name == "scalebio"]
        rows[part] = experiment.measured_rows(6)["scalebio"]
        assert placed.strategy.first_step(6) == {"0": 0, "0.5": 3, "4": 4}[part]  # type: ignore[attr-defined]
    assert rows["0.5"] == rows["0"] / 2 and rows["4"] == rows["0"] / 3


WEIGHTERS = [name for name in METHODS_OF_ALL if "warmup_steps:" in (conf_dir() / "method" / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("method", WEIGHTERS)
def test_a_negative_one_is_refused(method: str) -> None:
    """By every weighter, so none forgets to check what all share."""
    settings = compose_settings(f"method={method}", *NEEDED.get(method, []), f"strategies.{method}.warmup_steps=-1")
    with pytest.raises(ConfigError, match="warmup_steps"):
        make_strategies(resolve(settings["strategies"], rehearsed(DOMAINS)))


def test_every_weighter_is_among_them() -> None:
    assert {*METHODS} < {*WEIGHTERS}
