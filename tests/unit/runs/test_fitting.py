"""`regimen fit`: tables and run folders in, a fitted law, its quality on unseen rows and a proposed mixture out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regimen.core.errors import ConfigError
from regimen.mixing.laws.bimix import BiMix
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.mixing_laws import MixingLaws
from regimen.mixing.laws.mixmin import MixMin
from regimen.mixing.laws.nested import at_size
from regimen.mixing.laws.regmix_linear import RegMixLinear
from regimen.mixing.laws.table import LawTable, target_weights
from regimen.runs.fitting import command
from regimen.runs.fitting.fit import fit_runs, fit_table, quality, read_fit
from regimen.runs.fitting.sources import skill_graph_of_runs
from regimen.runs.fitting.tables import read_tables, run_folders, short_names, table_of_runs
from tests.reference.laws import mixtures_of
from tests.support.shared import shared

DOMAINS = ("code", "prose", "sums")
KEYS = (
    *("law", "target", "spearman", "mae", "mse", "r2", "held_out", "parameters", "mixture", "predicted", "notes"),
    *("rows", "seconds"),
)


def losses_of(mixture: np.ndarray) -> np.ndarray:
    """Losses of the three domains under a BiMix law."""
    return 2 * np.maximum(mixture, 5e-3) ** -np.array([0.1, 0.2, 0.05])


def write_run(folder: Path, mixture, *, steps=(0, 50, 100), losses=None, status="finished", **more) -> Path:
    folder.mkdir(parents=True)
    shares = dict(zip(DOMAINS, map(float, mixture), strict=True))
    natural = dict(zip(DOMAINS, (0.2, 0.5, 0.3), strict=True))
    told = {"status": status, "parameters": 100, "mixture": {"realised": shares, "decided": shares, "natural": natural}}
    (folder / "summary.json").write_text(json.dumps({**told, **more}))
    rows = [{"step": 1, "split": "train", "loss": 9.0}]
    for step in steps:
        found = losses_of(np.array(mixture)) + 50 / (step + 10) if losses is None else losses
        row = {f"{name}/loss": float(value) for name, value in zip(DOMAINS, found, strict=True)}
        row |= {f"{name}/bits_per_byte": float(value) / 2 for name, value in zip(DOMAINS, found, strict=True)}
        rows.append({"step": step, "split": "eval", "macro/loss": 1.0, "micro/loss": 1.0, **row})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sweep(tmp_path) -> Path:
    for i, mixture in enumerate(mixtures_of(8, 3, strength=3)):
        write_run(tmp_path / "sweep" / f"run{i}", mixture)
    write_run(tmp_path / "sweep" / "broken", [1, 0, 0], status="running")
    return tmp_path / "sweep"


def write_csv(path: Path, names, values) -> Path:
    lines = [",".join(["index", *names])]
    lines += [",".join([str(i + 1), *(f"{float(v):.9g}" for v in row)]) for i, row in enumerate(values)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tables(tmp_path) -> dict[str, str]:
    mixtures = mixtures_of(12, 3, strength=3)
    first = write_csv(tmp_path / "m.csv", [f"train_the_{d}" for d in DOMAINS], mixtures)
    second = write_csv(tmp_path / "l.csv", [f"metric/the_{d}_val_loss" for d in DOMAINS], losses_of(mixtures))
    return {"mixtures": str(first), "losses": str(second), "run_dir": str(tmp_path / "out")}


# ---- run folders -----------------------------------------------------------------------------------------------


def test_runs_give_a_law_of_steps_and_a_mixture(sweep, tmp_path):
    content = fit_runs(BiMix(), [sweep], tmp_path / "fit")
    assert set(KEYS) <= set(content)
    assert read_fit(tmp_path / "fit") == json.loads(json.dumps(content))
    assert content["rows"] == 16 and content["law"] == "bimix"  # the evaluation at step 0 is no row
    assert content["held_out"]["kind"] == "leave one mixture out" and content["held_out"]["rows"] == 8
    assert content["spearman"] == pytest.approx(1) and content["held_out"]["mae"] < 0.01
    assert sum(content["mixture"].values()) == pytest.approx(1)
    assert content["predicted"]["proposed"] <= content["predicted"]["natural"]
    assert content["natural"] == {"code": 0.2, "prose": 0.5, "sums": 0.3}
    assert (tmp_path / "fit" / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "fit").iterdir()) == ["fit.json", "fit.png"]


def test_other_laws_take_the_last_evaluation(sweep, tmp_path):
    content = fit_runs(
        MixingLaws(starts=2), [sweep], tmp_path / "fit", target={"code": 3, "sums": 1}, unit="bits_per_byte",
        constraints=Constraints(min_share=0.1),
    )  # fmt: skip
    assert content["target"] == {"code": 0.75, "sums": 0.25}
    assert content["judged_rows"] == 8
    assert min(content["mixture"].values()) >= 0.1 - 1e-9


def test_losses_are_extrapolated_to_the_step_of_the_run_to_come(tmp_path):
    """Nested laws: lower losses at a later step, told in the notes; BiMix only proposes for it."""
    sweep = tmp_path / "longer"
    for i, mixture in enumerate(mixtures_of(8, 3, strength=3)):
        write_run(sweep / f"run{i}", mixture, steps=(25, 50, 75, 100))
    ends, later = (
        fit_runs(RegMixLinear(), [sweep], tmp_path / str(step), at_step=step)["predicted"]["natural"]
        for step in (None, 100_000)
    )
    assert later < ends
    assert "step 100000" in " ".join(json.loads((tmp_path / "100000" / "fit.json").read_text())["notes"])
    steps = [fit_runs(BiMix(), [sweep], tmp_path / f"b{s}", at_step=s)["parameters"]["step"] for s in (None, 1e5)]
    assert steps[0] < steps[1] == 1e5


def test_more_mixtures_are_held_out_in_folds(tmp_path):
    table = read_like(mixtures_of(23, 3, strength=3))
    content = fit_table(RegMixLinear(), table, tmp_path)
    assert content["held_out"]["kind"] == "5 folds of mixtures" and content["held_out"]["rows"] == 23


def test_a_mixture_is_held_out_whole(tmp_path):
    """Runs of one mixture with other seeds would tell the answer."""
    mixtures = np.repeat(mixtures_of(5, 3, strength=3), 2, 0)
    noise = np.tile([[0.5], [-0.5]], (5, 1))
    content = fit_table(RegMixLinear(), read_like(mixtures, losses_of(mixtures) + noise), tmp_path)
    assert content["held_out"]["kind"] == "leave one mixture out" and content["held_out"]["rows"] == 10


def read_like(mixtures, losses=None) -> LawTable:
    losses = losses_of(mixtures) if losses is None else losses
    return LawTable(domains=DOMAINS, mixtures=mixtures, targets=DOMAINS, losses=losses)


def test_too_few_rows_to_hold_any_out(tmp_path):
    content = fit_table(RegMixLinear(), read_like(mixtures_of(3, 3)), tmp_path)
    assert content["held_out"] is None and "too few rows to hold any out" in content["notes"][0]
    assert content["predicted"]["natural"] is None


def test_runs_that_do_not_compare(sweep, tmp_path):
    one = write_run(tmp_path / "other" / "a", [0.2, 0.3, 0.5], parameters=7)
    with pytest.raises(ConfigError, match="other parameters"):
        table_of_runs([*run_folders([sweep]), one])
    late = write_run(tmp_path / "other" / "b", [0.2, 0.3, 0.5], steps=(0, 200))
    with pytest.raises(ConfigError, match=r"ended at different steps(.|\n)*100, 200"):
        fit_runs(RegMixLinear(), [sweep, late], tmp_path / "fit")
    bad = write_run(tmp_path / "other" / "c", [0.2, 0.3, 0.5], losses=[1.0, 2.0, 3.0])
    (bad / "metrics.jsonl").write_text('{"step": 5, "split": "eval", "code/loss": null, "prose/loss": 1.0}\n')
    with pytest.raises(ConfigError, match=r"has no loss at step 5(.|\n)*code"):
        table_of_runs([bad])
    (bad / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="no evaluations"):
        table_of_runs([bad])
    with pytest.raises(ConfigError, match="no finished runs"):
        run_folders([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="unit"):
        table_of_runs([one], unit="perplexity")
    with pytest.raises(ConfigError, match="no law was fitted here"):
        read_fit(tmp_path)


def test_served_shares_that_are_off_are_noted(tmp_path):
    run = write_run(tmp_path / "a", [0.2, 0.3, 0.5])
    told = json.loads((run / "summary.json").read_text())
    told["mixture"]["realised"] = {"code": 0.5, "prose": 0.3, "sums": 0.2}
    (run / "summary.json").write_text(json.dumps(told))
    assert "served shares are up to 0.300 off" in table_of_runs([run]).notes[0]


# ---- one run per domain ----------------------------------------------------------------------------------------


def write_sources(folder: Path, *, names: bool = False) -> list[Path]:
    """Sources that alone can say the rows of their domain: the best mixture is the target's share of rows."""
    domain = np.repeat([0, 1, 2], [50, 30, 20])
    runs = []
    for i, name in enumerate(DOMAINS):
        run = write_run(folder / name, np.eye(3)[i], losses=None, steps=(0, 100))
        loss = np.where(domain == i, 1.0, 1e4)
        written = np.array(DOMAINS)[domain] if names else domain
        np.savez(run / "validation_rows.npz", ids=np.arange(100), domain=written, loss=loss, tokens=np.full(100, 4))
        runs.append(run)
    return runs


@pytest.mark.parametrize("names", [False, True])
def test_mixmin_from_runs(tmp_path, names):
    write_sources(tmp_path / "sweep", names=names)
    content = fit_runs(MixMin(), [tmp_path / "sweep"], tmp_path / "fit")
    assert set(KEYS) <= set(content)
    assert content["mixture"] == pytest.approx({"code": 0.5, "prose": 0.3, "sums": 0.2}, abs=1e-3)
    assert (content["rows"], content["held_out"]["rows"]) == (80, 20)
    assert content["held_out"]["proposed"] <= content["held_out"]["natural"]
    two = fit_runs(MixMin(), [tmp_path / "sweep"], tmp_path / "fit", target="code,sums")
    assert two["mixture"] == pytest.approx({"code": 5 / 7, "prose": 0, "sums": 2 / 7}, abs=1e-3)
    capped = Constraints(max_share=0.4)
    assert (
        max(fit_runs(MixMin(), [tmp_path / "sweep"], tmp_path / "fit", constraints=capped)["mixture"].values()) < 0.401
    )


def test_mixmin_by_the_command(tmp_path, capsys):
    write_sources(tmp_path / "sweep")
    command.main({"law": "mixmin", "runs": str(tmp_path / "sweep"), "run_dir": str(tmp_path / "fit")})
    assert "20 rows that were held out" in capsys.readouterr().out
    assert read_fit(tmp_path / "fit")["law"] == "mixmin"


def test_the_command_on_runs(sweep, tmp_path, capsys):
    command.main({"law": "bimix", "runs": str(sweep), "unit": "bits_per_byte", "run_dir": str(tmp_path / "fit")})
    assert "leave one mixture out" in capsys.readouterr().out
    assert read_fit(tmp_path / "fit")["unit"] == "bits_per_byte"


def test_mixmin_refuses(tmp_path, sweep):
    with pytest.raises(ConfigError, match="one run per domain"):
        fit_runs(MixMin(), [sweep], tmp_path / "fit")
    runs = write_sources(tmp_path / "one")
    for wrong in ({"target": {"code": 2, "sums": 1}}, {"constraints": Constraints(kl=0.1)}, {"target": "web"}):
        with pytest.raises(ConfigError):
            fit_runs(MixMin(), runs, tmp_path / "fit", **wrong)
    (runs[0] / "validation_rows.npz").unlink()
    with pytest.raises(ConfigError, match="no losses of validation rows"):
        fit_runs(MixMin(), runs, tmp_path / "fit")


def test_skill_graph_of_runs(tmp_path):
    runs = write_sources(tmp_path / "sweep")
    graph = skill_graph_of_runs(runs)
    assert graph.domains == DOMAINS and graph.targets == DOMAINS
    start, end = losses_of(np.eye(3)[0]) + 5, losses_of(np.eye(3)[0]) + 50 / 110
    assert graph.matrix[0].tolist() == pytest.approx(((start - end) / start).tolist())
    unmeasured = write_run(tmp_path / "late", np.eye(3)[0], steps=(50, 100))
    with pytest.raises(ConfigError, match=r"evaluation.at=\[0,1\]"):
        skill_graph_of_runs([unmeasured])


# ---- tables and the command ------------------------------------------------------------------------------------


def test_command_on_tables(tables, capsys):
    natural = "{train_the_code: 2, prose: 5, sums: 3}"
    settings = {**tables, "law": "bimix", "target": "mean", "natural": natural, "min_share": "0.05"}
    assert command.main(settings) == 0
    content = read_fit(Path(tables["run_dir"]))
    assert content["natural"] == pytest.approx({"code": 0.2, "prose": 0.5, "sums": 0.3})
    assert content["held_out"]["kind"] == "5 folds of mixtures"
    printed = capsys.readouterr().out
    assert "spearman" in printed and "proposed   natural" in printed and "fit.json" in printed


@pytest.mark.parametrize("law", ["bimix", "regmix_linear", "mixing_laws", "olmix", "regmix_lightgbm"])
def test_every_law_from_the_command(tables, law):
    more = {"law.min_data_in_leaf": "2", "law.rounds": "20", "draws": "500", "top": "10"} if "gbm" in law else {}
    command.main({**tables, "law": law, "target": "metric/the_code_val_loss,sums", "max_share": "0.6", **more})
    content = read_fit(Path(tables["run_dir"]))
    assert content["law"] == law and content["target"] == {"code": 0.5, "sums": 0.5}
    assert sum(content["mixture"].values()) == pytest.approx(1)
    assert max(content["mixture"].values()) <= 0.6 + 1e-9


def test_test_tables_are_named_like_the_training_tables(tables, tmp_path):
    mixtures = mixtures_of(6, 3, seed=1, strength=3)
    first = write_csv(tmp_path / "tm.csv", [f"train_the_{d}" for d in DOMAINS], mixtures)
    second = write_csv(tmp_path / "tl.csv", ["metric/the_code_val_loss"], losses_of(mixtures)[:, :1])
    settings = {**tables, "law": "bimix", "target": "code", "test_mixtures": str(first), "test_losses": str(second)}
    command.main(settings)
    held = read_fit(Path(tables["run_dir"]))["held_out"]
    assert held["kind"] == "test table" and held["rows"] == 6 and held["mae"] < 1e-6


def test_caps_pools_and_normalising(tables, tmp_path):
    pool = tmp_path / "pool.csv"
    pool.write_text("domain,tokens\ncode,1e6\nprose,9e6\nsums,9e6\n")
    more = {"pool": str(pool), "rho": "2", "tokens": "1e7", "caps": "{prose: 0.45}", "normalise": "true"}
    command.main({**tables, "law": "bimix", **more})
    mixture = read_fit(Path(tables["run_dir"]))["mixture"]
    assert mixture["code"] <= 0.2 + 1e-9 and mixture["prose"] <= 0.45 + 1e-9


def test_regmix_tables_by_the_command(tmp_path, capsys):
    files = {
        "mixtures": "train_mixture_1m", "losses": "train_pile_loss_1m",
        "test_mixtures": "test_mixture_1B", "test_losses": "test_pile_loss_1B",
    }  # fmt: skip
    settings = {key: str(shared(f"regmix/{name}.csv")) for key, name in files.items()}
    settings |= {"law": "regmix_linear", "target": "metric/the_pile_pile_cc_val_loss", "run_dir": str(tmp_path)}
    command.main(settings)
    content = read_fit(tmp_path)
    assert content["held_out"]["spearman"] == pytest.approx(0.8766, abs=1e-3)
    assert list(content["mixture"])[:2] == ["arxiv", "dm_mathematics"] and list(content["target"]) == ["pile_cc"]


def test_names():
    assert short_names(["train_the_arxiv", "train_the_abstracts"]) == ["arxiv", "abstracts"]
    assert short_names(["web", "code"]) == ["web", "code"]
    assert short_names(["train_web"]) == ["train_web"]
    assert short_names(["a_b", "a_b_c"]) == ["b", "b_c"]
    assert short_names(["web", "web_x"]) == ["web", "web_x"]  # no separator ends what they share


def test_targets():
    even = {"code": 0.5, "sums": 0.5}
    for target in ("code,sums", "sums, code", ["code", "sums"], {"code": 3, "sums": 3, "prose": 0}):
        assert target_weights(DOMAINS, target) == even
    assert target_weights(DOMAINS, None) == target_weights(DOMAINS, "mean") == dict.fromkeys(DOMAINS, 1 / 3)
    for wrong in ("cod", {"code": -1}, {"code": 0}, {"code": "x"}):
        with pytest.raises(ConfigError):
            target_weights(DOMAINS, wrong)


def test_quality():
    assert quality(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 9.0]))["spearman"] == pytest.approx(1)
    flat = quality(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    assert flat == {"spearman": None, "mae": 1.0, "mse": 1.0, "r2": None}


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": None}, "needs a law"),
        ({"law": "bimx"}, "did you mean 'bimix'"),
        ({"lw": "bimix"}, "did you mean 'law'"),
        ({"law.deltta": "1", "law": "olmix"}, "did you mean 'delta'"),
        ({"law.delta": "x", "law": "olmix"}, "law.delta is not a number"),
        ({"law.starts": "1.5", "law": "olmix"}, "law.starts is not a whole number"),
        ({"target": "proze"}, "did you mean 'prose'"),
        ({"min_share": "half"}, "min_share is not a number"),
        ({"min_share": "0.5"}, "cannot sum to 1"),
        ({"caps": "{web: 0.5}"}, "a cap is for a domain"),
        ({"caps": "0.5"}, "neither a table nor a file"),
        ({"caps": "{prose: [}"}, "cannot be read"),
        ({"rho": "4"}, "needs rho, tokens and pool"),
        ({"kl": "0.1"}, "needs the natural shares"),
        ({"natural": "{code: 1}"}, "do not name every domain"),
        ({"natural": "{code: x, prose: 1, sums: 1}"}, "natural: code is not a number"),
        ({"losses": None}, "either runs or two tables"),
        ({"runs": "outputs"}, "either runs or two tables"),
        ({"test_losses": "x.csv"}, "come in pairs"),
        ({"law": "mixmin"}, "law=mixmin runs=FOLDER"),
        ({"mixtures": "nowhere.csv"}, "cannot read the table"),
    ],
)  # fmt: skip
def test_bad_settings(tables, change, message):
    settings = {**tables, "law": "bimix", **change}
    with pytest.raises(ConfigError, match=message):
        command.main({key: value for key, value in settings.items() if value is not None})


@pytest.mark.parametrize(
    ("mixtures", "losses", "message"),
    [
        ("i,a,b\n1,0.5,0.5\n2,0.4,0.6\n", "i,a\n1,2\n3,2\n", "do not match(.|\n)*2, 3"),
        ("i,a,b\n1,0.5,0.5\n2,0.4,nan\n", "i,a\n1,2\n2,2\n", "row '2', column 'b' is no finite number"),
        ("i,a,b\n1,0.5,0.5\n2,0.4,0.6\n", "i,a\n1,2\n2,\n", "column 'a' is no finite number"),
        ("i,a,b\n1,0.5,0.5\n2,0.4,oops\n", "i,a\n1,2\n2,2\n", "oops"),
        ("i,a,b\n1,50,50\n2,40,60\n", "i,a\n1,2\n2,2\n", "2 of 2 rows are no mixture(.|\n)*percentages"),
        ("i,a,b\n1,1.1,-0.1\n2,0.4,0.6\n", "i,a\n1,2\n2,2\n", "1 of 2 rows are no mixture"),
        ("i,a,a\n1,0.5,0.5\n", "i,a\n1,2\n", "a column twice"),
        ("i,a,b\n1,0.5\n", "i,a\n1,2\n", "has 2 cells"),
        ("i,a,b\n", "i,a\n1,2\n", "is no table"),
        ("i,a,b\n1,0.5,0.5\n", "i,a\n1,2\n", "cannot be fitted to 1 row"),
    ],
)
def test_bad_tables(tmp_path, mixtures, losses, message):
    (tmp_path / "m.csv").write_text(mixtures)
    (tmp_path / "l.csv").write_text(losses)
    with pytest.raises(ConfigError, match=message):
        BiMix().fit(read_tables(tmp_path / "m.csv", tmp_path / "l.csv").table, "a")


def test_bad_arrays():
    good = read_like(mixtures_of(4, 3))
    for change, message in (
        ({"mixtures": good.mixtures[:3]}, "different numbers of rows"),
        ({"losses": good.losses * np.nan}, "12 cells that are no finite number"),
        ({"losses": [["a", 1, 2]] * 4}, "not a table of numbers"),
        ({"domains": ("a", "a", "b")}, "a domain twice"),
        ({"domains": ("a", "b")}, "another shape"),
        ({"natural": np.zeros(3)}, "natural shares are no shares"),
        ({"steps": np.array([1.0, 2, 3, 0])}, "steps do not fit"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(good, **change)
    other = dataclasses.replace(good, domains=("code", "prose", "web"))
    with pytest.raises(ConfigError, match=r"missing: sums; extra: web"):
        good.same_domains(other)
    rounded = dataclasses.replace(good, mixtures=good.mixtures * 1.004)
    assert np.allclose(rounded.mixtures.sum(1), 1.004)  # kept as it is
    assert np.allclose(rounded.normalised().mixtures.sum(1), 1)


def test_the_command_starts_light():
    heavy = {"torch", "numpy", "scipy", "lightgbm"}
    code = f"import sys, regimen.runs.fitting.command; print(*{heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_losses_are_extrapolated_to_the_size_of_the_run_to_come(tmp_path):
    """Three sizes of each mixture, losses that fall with size by one power law: its prediction, exactly."""
    mixtures = mixtures_of(6, 3, strength=3)
    for i, mixture in enumerate(mixtures):
        for size in (1e6, 2e6, 4e6):
            falling = losses_of(mixture) + 300 * size**-0.4
            write_run(tmp_path / "sizes" / f"run{i}-{size:g}", mixture, losses=falling, parameters=size,
                      non_embedding_parameters=size)  # fmt: skip
    found = table_of_runs(run_folders([tmp_path / "sizes"]), sizes=True).table
    later = at_size(found, 1e8)
    expected = np.array([losses_of(mixture) + 300 * 1e8**-0.4 for mixture in later.mixtures])
    assert later.losses == pytest.approx(expected, rel=2e-3)
    content = fit_runs(RegMixLinear(), [tmp_path / "sizes"], tmp_path / "fit", at_size=1e8)
    assert content["rows"] == 6 and "1e+08 parameters" in " ".join(content["notes"])
    with pytest.raises(ConfigError, match="parameters"):
        fit_runs(RegMixLinear(), [tmp_path / "sizes"], tmp_path / "other")
