"""Half-finished, failed, torn and mixed run folders: listed with their reason, never counted, never a crash."""

from __future__ import annotations

import json
import math
import zipfile

import pytest
from synthetic_runs import DOMAINS, write_grid, write_run

from regimen.core.errors import ConfigError
from regimen.reports import build
from regimen.reports.assemble import compare_runs, parse_metric
from regimen.reports.content import make_report
from regimen.reports.inventory import notices, runs_table, settings_table
from regimen.reports.missing import missing_cells
from regimen.reports.runs import find_runs, read_run


def load(root, metric="macro/bits_per_byte", baseline=None):
    runs = [read_run(folder) for folder in find_runs([root])]
    sections, comparisons = compare_runs(runs, parse_metric(metric, runs), baseline)
    return runs, sections, comparisons


def status_of(runs, sections, root, folder):
    table = runs_table(runs, sections, base=root)
    row = next(row for row in table.rows if row[-1].text == folder)
    return row[2]


@pytest.fixture
def pair(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "natural", seed)
        write_run(tmp_path, "odm", seed, shift=-0.02, noise=0.004)
    return tmp_path


def test_runs_that_do_not_count(pair):
    write_run(pair, "odm", 3, status="failed", reason="the loss was not a number at step 7", folder="failed")
    write_run(pair, "odm", 4, status="running", folder="running")
    torn = write_run(pair, "odm", 5, folder="torn")
    (torn / "summary.json").write_text('{"format": 1, "method": "od')
    (pair / "early").mkdir()
    (pair / "early" / "metrics.jsonl").write_text('{"step": 3, "split": "train"}\n')
    write_run(pair, "odm", 6, folder="nan", scores=dict.fromkeys(DOMAINS, math.nan))
    newer = write_run(pair, "odm", 7, folder="newer")
    (newer / "summary.json").write_text(json.dumps({"format": 9, "method": "odm", "status": "finished"}))
    runs, sections, comparisons = load(pair)
    assert [len(result.arm.counted) for result in comparisons[0].results] == [2, 2]
    reasons = {
        name: status_of(runs, sections, pair, name) for name in ("failed", "running", "torn", "early", "nan", "newer")
    }
    assert reasons["failed"].detail == "the loss was not a number at step 7"
    assert (reasons["running"].text, reasons["running"].detail) == ("running", "it had logged step 300")
    assert "cannot be read" in reasons["torn"].detail
    assert "no summary.json" in reasons["early"].detail
    assert reasons["nan"].detail == "its final macro/bits_per_byte is not a number"
    assert "format 9" in reasons["newer"].detail
    missing = missing_cells(sections[0])
    assert "odm, seed 3: failed, the loss was not a number at step 7; nothing was saved" in missing
    assert "natural, seeds 3, 4 and 6: no run" in missing
    assert build([pair]).is_file()


def test_null_stands_for_not_a_number(pair):
    path = pair / "odm-nano-local-seed2" / "summary.json"
    summary = json.loads(path.read_text())
    summary["evaluation"]["macro"]["bits_per_byte"] = None
    path.write_text(json.dumps(summary))
    _, sections, _ = load(pair)
    assert missing_cells(sections[0]) == ["odm, seed 2: finished, its final macro/bits_per_byte is not a number"]


def test_a_torn_last_line_and_missing_files_are_noted(pair):
    run = pair / "odm-nano-local-seed1"
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 301, "spl')
    (pair / "odm-nano-local-seed2" / "metrics.jsonl").unlink()
    (pair / "odm-nano-local-seed2" / "record.jsonl").unlink()
    runs, sections, comparisons = load(pair)
    notes = " ".join(runs_table(runs, sections, base=pair).notes)
    assert "metrics.jsonl has 1 line that is not JSON, left out" in notes and "it has no record.jsonl" in notes
    place = next(place for place in comparisons[0].rankings[0].places if place.label == "odm")
    assert place.score.n == 1 and place.note == "1 of 2 runs have a score there"
    assert build([pair]).is_file()


def test_stages_inside_a_run_are_not_runs(pair):
    write_run(pair / "odm-nano-local-seed1" / "stages", "reference", 1)
    assert len(find_runs([pair])) == 4


def test_globs_files_and_folders_name_runs(pair):
    assert len(find_runs([pair / "odm-*"])) == 2
    assert find_runs([pair / "odm-nano-local-seed1", pair]) == find_runs([str(pair)])
    assert len(find_runs([pair / "odm-nano-local-seed1" / "summary.json"])) == 1


def test_a_repeated_seed_counts_once(pair):
    write_run(pair, "odm", 1, shift=-0.3, folder="zz-again")
    runs, sections, comparisons = load(pair)
    assert comparisons[0].results[1].arm.seeds == (1, 2)
    assert comparisons[0].results[1].arm.by_seed()[1].folder.name == "zz-again"
    assert "replaced by the later folder zz-again" in status_of(runs, sections, pair, "odm-nano-local-seed1").detail


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"pool": "pool-b2"}, "a different pool of data"), ({"steps": 600}, "another token budget (2,457,600 against")],
)
def test_not_comparable(pair, settings, text):
    for seed in (1, 2):
        write_run(pair, "delt", seed, **settings)
    _, _, comparisons = load(pair)
    delt = next(result for result in comparisons[0].results if result.arm.label == "delt")
    assert delt.differences == {} and delt.test is None
    assert any("delt is NOT comparable with natural" in line and text in line for line in notices(comparisons[0]))
    ranked = {place.label for place in comparisons[0].rankings[0].places}
    assert ("delt" in ranked) == ("steps" in settings)  # another pool is evaluated on other text, a longer run is not
    assert "NOT comparable" in build([pair]).read_text()


def test_models_and_datasets_are_sections(pair):
    for seed in (1, 2):
        write_run(pair, "natural", seed, model="small")
        write_run(pair, "odm", seed, model="small", shift=-0.01, noise=0.003)
    runs, sections, comparisons = load(pair)
    assert [c.section.title for c in comparisons] == ["nano on local", "small on local"]
    report = make_report(comparisons, runs, sections, base=pair)
    assert "NOT comparable" in report.notices[0]


def test_variants_of_a_method_are_arms_of_their_own(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, "natural", seed, config={"optimizer": {"lr": 0.001}, "strategies": {}})
        for folds in (3, 5):
            config = {"optimizer": {"lr": 0.001}, "strategies": {"folding": {"folds": folds}}}
            write_run(tmp_path, "delt", seed, config=config, folder=f"delt-{folds}-{seed}")
    _, sections, comparisons = load(tmp_path)
    assert [result.arm.label for result in comparisons[0].results] == ["natural", "delt (folds=3)", "delt (folds=5)"]
    assert settings_table(sections) is None
    assert load(tmp_path, baseline="delt (folds=5)")[2][0].baseline.arm.label == "delt (folds=5)"


def test_settings_that_differ_are_listed(tmp_path):
    for method, lr in (("natural", 0.001), ("odm", 0.002)):
        config = {"optimizer": {"lr": lr, "name": "adamw"}, "strategies": {"x": method}, "paths": {"out": method}}
        for seed in (1, 2):
            write_run(tmp_path, method, seed, config=config)
    _, sections, _ = load(tmp_path)
    table = settings_table(sections)
    assert table.columns == ("Setting", "natural", "odm")
    assert [[cell.text for cell in row] for row in table.rows] == [["optimizer.lr", "0.001", "0.002"]]


def test_a_broken_config_is_a_note(pair):
    (pair / "odm-nano-local-seed1" / "config.yaml").write_text("a: [1, 2\n")
    runs, _, _ = load(pair)
    assert any("config.yaml cannot be read" in note for run in runs for note in run.notes)


def test_the_baseline(pair):
    assert load(pair, baseline="odm")[2][0].baseline.arm.label == "odm"
    with pytest.raises(ConfigError, match="did you mean 'odm'"):
        load(pair, baseline="odn")
    for seed in (1, 2):
        for name in ("summary.json", "metrics.jsonl", "record.jsonl"):
            (pair / f"natural-nano-local-seed{seed}" / name).unlink()
    assert load(pair)[2][0].baseline.arm.label == "odm"


def test_errors_say_what_to_do(tmp_path, pair):
    with pytest.raises(ConfigError, match="does not exist"):
        build([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no run to report on"):
        build([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="metric is not in the runs"):
        build([pair], metric="macro/accuracy")
    write_run(tmp_path / "bad", "odm", 1, status="failed")
    with pytest.raises(ConfigError, match="none of these runs is finished"):
        build([tmp_path / "bad"])


def test_one_method_alone(tmp_path):
    write_run(tmp_path, "odm", 1)
    page = build([tmp_path]).read_text()
    assert "nothing to compare it with" in page


def test_outputs_and_default_folder(tmp_path):
    page = build([write_grid(tmp_path / "sweep", seeds=(1, 2))])
    assert page == tmp_path / "sweep" / "report.html"
    assert sorted(p.name for p in page.parent.glob("*report*")) == ["report.csv", "report.html", "report.md"]
    first = page.read_bytes()
    assert build([tmp_path]).parent == tmp_path
    elsewhere = build([str(tmp_path / "sweep" / "*-seed?")], out=tmp_path / "sweep")
    assert elsewhere.read_bytes() == first  # same runs, same bytes: no time, no random id


def grid_file(root, *overrides):
    lines = "".join(f"    - {override}\n" for override in overrides)
    (root / "multirun.yaml").write_text(f"hydra:\n  overrides:\n    task:\n{lines}")


def test_a_grid_knows_the_runs_that_never_began(pair):
    """From the file that Hydra leaves beside them: of methods that ran, of methods that did not, of joined methods."""
    grid_file(pair, "method=natural,odm,[folding,odm],uniform", "seed=range(1,4)", "model=nano,tiny")
    _, sections, _ = load(pair)
    assert missing_cells(sections[0]) == [
        "natural, seed 3: never started",
        "odm, seed 3: never started",
        "folding+odm, seeds 1, 2 and 3: never started",
        "uniform, seeds 1, 2 and 3: never started",
    ]
    grid_file(pair, "method=uniform", "seed=1", "model=tiny")
    assert missing_cells(load(pair)[1][0]) == [], "a grid of another model"
    (pair / "multirun.yaml").write_text("hydra: [")
    assert missing_cells(load(pair)[1][0]) == [], "a torn file tells nothing"


def test_where_a_stopped_run_goes_on(pair):
    """From its last whole checkpoint, where there is one."""
    stopped = write_run(
        pair, "odm", 3, status="preempted", reason="stopped by SIGTERM; the same command goes on", folder="s"
    )
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps(summary | {"steps": 12}))
    said = "odm, seed 3: preempted at step 12 (stopped by SIGTERM); "
    assert said + "nothing was saved" in missing_cells(load(pair)[1][0])
    (stopped / "checkpoints").mkdir()
    for name, content in (("step-00000008.ckpt", True), ("step-00000012.ckpt", False)):
        with zipfile.ZipFile(stopped / "checkpoints" / name, "w") as file:
            file.writestr("data", "x")
        if not content:  # cut by a crash
            (stopped / "checkpoints" / name).write_bytes(b"PK")
    assert said + "the same command goes on from step 8" in missing_cells(load(pair)[1][0])
