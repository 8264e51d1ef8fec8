"""A model that learns rows' scores from those of a part of them (V10), through the meter and in whole runs."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from regimen.core.errors import ConfigError
from regimen.core.ranks import spearman
from regimen.core.scoring import Scorer
from regimen.data.pool import Pool
from regimen.runs.check import check
from regimen.runs.experiment import make_pool
from regimen.runs.score import score
from regimen.training.cost import body_flops, rows_flops
from regimen.training.halfway import Charged
from regimen.training.meter import RowMeter
from regimen.training.row_scorer import RowScorer, _Training, predicted, standard
from tests.integration.test_meter import meter_of
from tests.support.runs import lines, run, settings_of, write_corpus

HOW = Scorer(model="own", rows=240, held_out=0.2, epochs=3, batch_rows=8, lr=1e-2, warmup=4)
TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 3, seed: 0}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus, and a domain whose documents have letters in shares of their own."""
    folder, rng = write_corpus(tmp_path_factory.mktemp("corpus"), documents=15), random.Random(0)
    with (folder / "letters.jsonl").open("w") as file:
        for i in range(80):
            shares = [rng.random() ** 2 for _ in "abcde"]
            file.write(json.dumps({"id": f"letters-{i}", "text": "".join(rng.choices("abcde", shares, k=190))}) + "\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def pool(corpus: Path, home: Path) -> Pool:
    return make_pool(settings_of(corpus, home, TARGET), progress=False)


@pytest.fixture
def meter(pool: Pool, corpus: Path, home: Path) -> RowMeter:
    return meter_of(pool, settings_of(corpus, home, TARGET), rows=8)


def rows_of(meter: RowMeter) -> Tensor:
    """Ids of the rows of letters."""
    return meter.index.ids(meter.index.domains.index("letters"))


def counts(meter: RowMeter, ids: Tensor) -> Tensor:
    """Scores that are linear in how often a model reads some tokens of a row: of all tokens but the last."""
    weights = {int(meter.language.encode(byte).tokens[0]): w for byte, w in {"a": 2.0, "b": 1.0, "c": -1.0}.items()}
    return torch.tensor([sum(w * int((t[:-1] == k).sum()) for k, w in weights.items()) for t in meter.tokens(ids)])


def learnt(meter: RowMeter, how: Scorer = HOW) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the rows of letters, the true ones, and which were not measured."""
    ids = rows_of(meter)
    places, true = how.sample(ids), counts(meter, ids)
    others = torch.ones(len(ids), dtype=torch.bool)
    others[places] = False
    return meter.learnt(ids, places, true[places], how), true, others


def test_scores_linear_in_token_counts_are_learnt(meter: RowMeter) -> None:
    """V10: a rank correlation above 0.9 on rows that were never measured; the model that measures is left alone."""
    before = copy.deepcopy(meter.sweeper.module.state_dict())
    found, true, others = learnt(meter)
    assert found.dtype == torch.float64 and found.shape == true.shape and int(others.sum()) > 100
    assert spearman(found[others], true[others]) > 0.9
    told = meter.halfway.told["scorer"]
    assert len(told["spearman"]) == HOW.epochs and max(told["spearman"]) > 0.9 and told["rows"] == HOW.rows
    assert all(torch.equal(value, meter.sweeper.module.state_dict()[name]) for name, value in before.items())
    assert meter.sweeper.module.training and all(p.grad is None for p in meter.sweeper.module.parameters())


def test_a_new_model_learns_too(meter: RowMeter) -> None:
    short = replace(HOW, model="nano", epochs=1)
    torch.manual_seed(1)
    a = learnt(meter, short)[0]
    torch.manual_seed(2)
    assert torch.equal(learnt(meter, short)[0], a), "its first weights are drawn by its own seed"
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        learnt(meter, replace(HOW, model="nana"))


def training(meter: RowMeter, how: Scorer) -> _Training:
    ids = rows_of(meter)
    places = how.sample(ids)
    scorer = RowScorer(copy.deepcopy(meter.sweeper.module.model))
    return _Training(scorer, meter.sweeper, ids[places], standard(counts(meter, ids[places]), how.clip_scores), how)


def kept(meter: RowMeter) -> Charged:
    return Charged(meter.halfway, "scorer", clock=meter.sweeper.clock, purpose="measuring")


def test_the_best_epoch_is_loaded_again(meter: RowMeter, tmp_path: Path) -> None:
    """With steps far too long the course goes up and down: not the last epoch scores, but the best."""
    for seed in range(8):
        of = training(meter, replace(HOW, rows=60, epochs=2, lr=0.2, final_lr=0.2, clip_norm=1e9, seed=seed))
        with meter.halfway.at(tmp_path):
            told = of.run(Charged(meter.halfway, f"{seed}", clock=meter.sweeper.clock, purpose="measuring"))
        course = told["spearman"]
        assert told["best"] == max(range(2), key=course.__getitem__)
        found = spearman(predicted(of.scorer, meter.sweeper, of.ids[of.held]), of.scores[of.held])
        assert found == max(course)
        if course[0] > course[1]:
            return
    raise AssertionError("no course fell")


def test_training_goes_on_after_any_epoch(meter: RowMeter, tmp_path: Path) -> None:
    """To the bit: the course, the weights and the cost."""
    how = replace(HOW, rows=60, epochs=3)
    states: list[Path] = []

    class Copied(Charged):
        def write(self, state: dict) -> None:
            super().write(state)
            states.append(tmp_path / f"after-{len(states) + 1}")
            states[-1].mkdir()
            shutil.copy(tmp_path / "whole" / "scorer.pt", states[-1])

    def flops() -> float:
        return meter.sweeper.clock.charges["measuring"].flops

    whole, before = training(meter, how), flops()
    with meter.halfway.at(tmp_path / "whole"):
        told = whole.run(Copied(meter.halfway, "scorer", clock=meter.sweeper.clock, purpose="measuring"))
    cost = flops() - before
    assert len(states) == how.epochs
    for folder in states:
        again, before = training(meter, how), flops()
        with meter.halfway.at(folder):
            assert again.run(kept(meter)) == told
        for name, value in whole.scorer.state_dict().items():
            assert torch.equal(value, again.scorer.state_dict()[name]), name
        assert flops() - before == pytest.approx(cost, rel=1e-12)


def test_the_scorer_is_charged(meter: RowMeter) -> None:
    """Three passes per row that is learnt from and epoch, one per row that is held out, and one per row of the pool."""
    how = replace(HOW, epochs=2)
    learnt(meter, how)
    ids = rows_of(meter)
    sample = ids[how.sample(ids)]
    held, rest = (sample[part] for part in how.split(len(sample)))

    def passes(of: Tensor) -> float:
        model = meter.sweeper.module.model
        return rows_flops(lambda context: body_flops(model, context), meter.index.inputs_of(of))

    found = meter.sweeper.clock.charges["measuring"].flops
    assert found == pytest.approx(how.epochs * (3 * passes(rest) + passes(held)) + passes(ids), rel=1e-9)


# ---- whole commands -----------------------------------------------------------------------------------------------

FEW = (
    *("descent.steps=2", "descent.annotate_every=1", "descent.lr=0.1", "scorer.rows=60", "scorer.batch_rows=8"),
    *("scorer.epochs=2", "scorer.model=own"),
)


def of(method: str) -> list[str]:
    return [f"method={method}", TARGET, *(f"strategies.{method}.by.{few}" for few in FEW)]


@pytest.mark.parametrize("method", ["lqs", "pds"])
def test_all_rows_are_scored_by_what_a_few_taught(method: str, corpus: Path, tmp_path: Path, pool: Pool) -> None:
    """`regimen score`: as Parquet, with the course of the scorer beside the values in the store."""
    settings = settings_of(corpus, tmp_path, *of(method))
    table = pq.read_table(score(settings) / "scores.parquet").to_pydict()
    rows = pool.train.index.rows
    assert table["id"] == list(range(rows)) and sorted(table["rank"]) == list(range(rows))
    (folder,) = (tmp_path / "store").glob("measurements/costate-*")
    told = json.loads((folder / "values.json").read_text())
    assert len(told["scorer"]["spearman"]) == 2 and told["scorer"]["rows"] == 60
    assert np.allclose(np.load(folder / "values.npy"), table["score"])
    assert not (folder / "halfway").exists()


def test_what_is_wrong_is_said_before_anything_is_measured(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'nano'"):
        check(settings_of(corpus, tmp_path, *of("lqs"), "strategies.lqs.by.scorer.model=nanoo"), tmp_path)
    check(settings_of(corpus, tmp_path, *of("lqs"), "strategies.lqs.by.scorer.rows=10000"), tmp_path)
    assert "no scorer is trained" in " ".join(capsys.readouterr().out.split())


def test_a_run_says_that_its_scorer_has_nothing_to_do(corpus: Path, tmp_path: Path) -> None:
    few = ("strategies.lqs.candidates=24", "budget.steps=1", "evaluation.at=[]", f"run_dir={tmp_path}/run")
    folder = run(corpus, tmp_path, *of("lqs"), *few)
    (said,) = json.loads((folder / "summary.json").read_text())["warnings"]
    assert said.startswith("lqs: all 24 rows are measured and no scorer is trained")


# ---- scores that are ready ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("polarity", [1, -1])
def test_ready_scores_serve_delt_by_their_polarity(polarity: int, corpus: Path, tmp_path: Path, pool: Pool) -> None:
    """One number turns selection and order alike: kept are the good half, served in folds that go up to the best."""
    rows = pool.train.index.rows
    numbers = np.random.default_rng(0).permutation(rows)
    np.save(tmp_path / "scores.npy", numbers)
    file = (f"signal.file.path={tmp_path}/scores.npy", f"signal.file.polarity={polarity}")
    told = ("method=delt", TARGET, "strategies.delt.by=${signal.file}", *file)
    folder = run(corpus, tmp_path, *told, f"run_dir={tmp_path}/run")
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").glob("runs/*")), "no proxy is trained"
    chosen, order = (row for row in lines(folder / "record.jsonl") if row["kind"] in ("selector", "orderer"))
    assert chosen["kept"] == rows // 2
    best = np.sort(polarity * numbers)[-(rows // 2) :]
    assert chosen["signal"]["filescores"]["kept_mean"] == pytest.approx(best.mean())
    course = np.diff(order["groups"]["all"]["scores"])  # of 20 parts
    assert (course[:5] > 0).all() and 2 <= (course < 0).sum() <= 4, "three passes from low to high"


def test_perplexity_has_a_polarity(corpus: Path, tmp_path: Path) -> None:
    """As a filter by a language model has it, and as DELT's code does, which keeps what is hard."""

    def scores(polarity: int) -> np.ndarray:
        told = (f"signal.perplexity.polarity={polarity}", f"run_dir={tmp_path}/{polarity}", TARGET)
        folder = score(settings_of(corpus, tmp_path, "method=pds", "strategies.pds.by=${signal.perplexity}", *told))
        return np.array(pq.read_table(folder / "scores.parquet")["score"].to_pylist())

    assert np.array_equal(scores(1), -scores(-1)) and (scores(1) > 1).all()
