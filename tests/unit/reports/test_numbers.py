"""Every number of the tables against a computation by hand."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys

import numpy as np
import pytest
from synthetic_runs import DOMAINS, STEPS, TOKENS_PER_STEP, final_scores, write_grid, write_run

from regimen.reports.assemble import compare_runs, parse_metric
from regimen.reports.budgets import cost_table, ranking_table
from regimen.reports.runs import find_runs, read_run
from regimen.reports.tables import realised_table, score_table, test_table
from regimen.reports.tidy import render_csv
from regimen.reports.wording import caution, decimals_for, headline

against_table = test_table  # pytest would collect a name that begins with test_
del test_table

T2, T5 = 4.302652729911275, 2.5705818366147395


def compared(root, metric="macro/bits_per_byte", baseline=None):
    runs = [read_run(folder) for folder in find_runs([root])]
    return compare_runs(runs, parse_metric(metric, runs), baseline)[1]


def result_of(comparison, label):
    return next(result for result in comparison.results if result.arm.label == label)


def row_of(table, label, column=0):
    return next(row for row in table.rows if row[column].text == label)


def column_of(table, label, name):
    return row_of(table, label)[table.columns.index(name)]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return compared(write_grid(tmp_path_factory.mktemp("grid")))[0]


def by_hand(shift, seeds=(1, 2, 3), domain=None):
    rows = []
    for seed in seeds:
        mine, base = final_scores(seed, shift, 0.006), final_scores(seed, 0.0, 0.0)
        picked = DOMAINS if domain is None else (domain,)
        rows.append(np.mean([mine[d] for d in picked]) - np.mean([base[d] for d in picked]))
    return np.array(rows)


def test_difference_and_interval(grid):
    d = by_hand(-0.021)
    half = T2 * d.std(ddof=1) / math.sqrt(3)
    found = result_of(grid, "odm").differences["macro"]
    assert found.seeds == (1, 2, 3) and found.unpaired == ()
    assert found.values == pytest.approx(tuple(d))
    assert (found.interval.mean, found.interval.low, found.interval.high) == pytest.approx(
        (d.mean(), d.mean() - half, d.mean() + half)
    )


def test_difference_of_a_domain(grid):
    d = by_hand(0.015, domain="math")
    assert result_of(grid, "topk").differences["math"].interval.mean == pytest.approx(d.mean())


def test_scores_in_the_table(grid):
    values = np.array([final_scores(seed, -0.021, 0.006)["python"] for seed in (1, 2, 3)])
    half = T2 * values.std(ddof=1) / math.sqrt(3)
    d, decimals = by_hand(-0.021, domain="python"), decimals_for(grid)
    half_d = T2 * d.std(ddof=1) / math.sqrt(3)
    cell = column_of(score_table(grid), "odm", "python")
    assert decimals == 3
    assert cell.text == f"{values.mean():.3f} \u00b1 {half:.3f}"
    assert cell.detail == f"{d.mean():+.3f} [{d.mean() - half_d:+.3f}, {d.mean() + half_d:+.3f}]".replace("-", "\u2212")
    micro = column_of(score_table(grid), "natural", "micro")
    mean = np.mean([np.mean(list(final_scores(seed, 0, 0).values())) - 0.05 for seed in (1, 2, 3)])
    assert micro.text.startswith(f"{mean:.3f}") and micro.detail == ""


def test_baseline_first_then_best_first(grid):
    means = [result.differences["macro"].interval.mean for result in grid.results[1:]]
    assert grid.results[0].arm.label == "natural" and means == sorted(means)


def test_permutation_and_holm(grid):
    table = against_table(grid)
    assert [column_of(table, "odm", name).text for name in ("p", "Least p", "Holm p")] == ["0.25", "0.25", "1.00"]
    assert column_of(table, "odm", "By its interval").text == "lower"
    assert column_of(table, "delt", "By its interval").text == "no clear difference"
    assert "family of 4 comparisons" in table.notes[0]
    assert "Descriptive: 3 pairs of seeds cannot give a sign-flip p below 0.25" in caution(grid)


def test_eight_seeds_can_be_tested(tmp_path):
    grid = compared(write_grid(tmp_path, seeds=range(1, 9)))[0]
    odm = result_of(grid, "odm")
    assert odm.test.flip.p == 2 / 256 == odm.test.flip.minimum and odm.test.holm == pytest.approx(4 * 2 / 256)
    assert caution(grid) == ""


def test_headline(grid):
    d = by_hand(-0.021)
    half = T2 * d.std(ddof=1) / math.sqrt(3)
    expected = (
        f"{d.mean():+.3f} [{d.mean() - half:+.3f}, {d.mean() + half:+.3f}] bits/byte against natural over 3 paired "
        "seeds, +0.2% FLOPs."
    )
    assert headline(result_of(grid, "odm"), grid, 3) == expected.replace("-", "\u2212")
    assert headline(result_of(grid, "delt"), grid, 3).startswith("no clear difference from natural: ")
    assert headline(result_of(grid, "loss_weighting"), grid, 3).endswith("same FLOPs.")


def test_costs(grid):
    training = 6 * 1_100_000 * STEPS * TOKENS_PER_STEP
    assert result_of(grid, "delt").overhead == pytest.approx(0.03)
    table = cost_table(grid)
    row = dict(zip(table.columns, [cell.text for cell in row_of(table, "topk")], strict=True))
    assert row["Tokens"] == "1.23 M" and row["Unique tokens"] == "1.11 M"
    assert row["FLOPs"] == f"{1.05 * training / 1e12:.2f} T" and row["Overhead"] == "+5.0%"
    assert row["Measuring"] == f"{0.05 * training / 1e9:.0f} G" and "Stages" not in row
    assert row["Time"] == "78 s" and row["Measuring time"] == "3.6 s" and row["Peak memory"] == "812 MB"


def test_stages_are_charged_and_can_be_seen_amortised(tmp_path):
    write_run(tmp_path, "natural", 1)
    write_run(tmp_path, "doremi", 1, stages=1.2 * 6 * 1_100_000 * STEPS * TOKENS_PER_STEP)
    comparison = compared(tmp_path)[0]
    table = cost_table(comparison)
    assert column_of(table, "doremi", "Stages").text == "9.73 T"
    assert column_of(table, "doremi", "Overhead").text == "+120.0%"
    assert column_of(table, "doremi", "If stages are reused").text == column_of(table, "natural", "FLOPs").text
    # Its stages alone cost what the baseline spent in all, so at equal FLOPs it had not begun.
    place = comparison.rankings[1].places[-1]
    assert (place.label, place.score) == ("doremi", None) and "before its first evaluation" in place.note


def test_ranking_at_equal_tokens_is_the_end(grid):
    ranking = grid.rankings[0]
    assert (ranking.axis, ranking.at) == ("tokens", STEPS * TOKENS_PER_STEP)
    assert ranking.places[0].label == "odm"
    assert ranking.places[0].difference.mean == pytest.approx(by_hand(-0.021).mean())


def test_ranking_at_equal_flops_interpolates(grid):
    training = 6.0 * 1_100_000 * STEPS * TOKENS_PER_STEP
    ranking = grid.rankings[1]
    assert ranking.at == pytest.approx(training)
    place = next(place for place in ranking.places if place.label == "delt")
    # delt spent 3% more, so natural's whole budget is the share 1 / 1.03 of delt's curve, between its last two points.
    run = result_of(grid, "delt").arm.counted[0]
    last, end = run.curve[-2:]
    share = (training - last["flops"]) / (end["flops"] - last["flops"])
    value = (1 - share) * last["macro/bits_per_byte"] + share * end["macro/bits_per_byte"]
    base = result_of(grid, "natural").arm.counted[0].score("macro", "bits_per_byte")
    values = [value - base]
    assert place.difference.low < values[0] < place.difference.high
    assert place.difference.mean > result_of(grid, "delt").differences["macro"].interval.mean
    table = ranking_table(ranking, grid)
    assert [row[0].text for row in table.rows] == ["1", "2", "3", "4", "5"]


def test_shares_seen(grid):
    table = realised_table(grid)
    assert [cell.text for cell in row_of(table, "odm")[1:]] == ["33.3%"] * 3
    assert [cell.text for cell in row_of(table, "in the pool")[1:]] == ["16.7%", "33.3%", "50.0%"]


def test_other_metrics(tmp_path):
    root = write_grid(tmp_path)
    python = compared(root, "python/bits_per_byte")[0]
    assert result_of(python, "odm").differences["python"].interval.mean == pytest.approx(
        by_hand(-0.021, domain="python").mean()
    )
    loss = compared(root, "macro/loss")[0]
    expected = by_hand(-0.021).mean() * math.log(2) * 3.5
    assert result_of(loss, "odm").differences["macro"].interval.mean == pytest.approx(expected)
    assert "nats/token" in headline(result_of(loss, "odm"), loss, 3)


def test_one_seed_has_no_interval(tmp_path):
    write_grid(tmp_path, seeds=(1,))
    comparison = compared(tmp_path)[0]
    odm = result_of(comparison, "odm")
    assert odm.test is None and not odm.differences["macro"].interval.bounded
    assert headline(odm, comparison, 3).endswith("against natural on seed 1, +0.2% FLOPs. One seed: no interval.")
    assert column_of(against_table(comparison), "odm", "95% interval").text == "\u2013"


def test_only_common_seeds_are_paired(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, "natural", seed)
    for seed in (2, 3, 4):
        write_run(tmp_path, "odm", seed, shift=-0.02, noise=0.006)
    write_run(tmp_path, "delt", 9)
    comparison = compared(tmp_path)[0]
    difference = result_of(comparison, "odm").differences["macro"]
    assert difference.seeds == (2, 3) and difference.unpaired == (1, 4)
    notes = " ".join(score_table(comparison).notes)
    assert "odm: paired on seeds 2 and 3 only; what one side lacks (seeds 1 and 4)" in notes
    assert result_of(comparison, "odm").scores["macro"].n == 3
    assert "no seed in common with natural" in headline(result_of(comparison, "delt"), comparison, 3)
    unranked = ranking_table(comparison.rankings[0], comparison).rows[-1]
    assert (unranked[0].text, unranked[1].text) == ("\u2013", "delt")


def test_identical_methods(tmp_path):
    for seed in range(1, 7):
        write_run(tmp_path, "natural", seed)
        write_run(tmp_path, "copy", seed)
    comparison = compared(tmp_path)[0]
    copy = result_of(comparison, "copy")
    assert copy.test.flip.p == 1.0 and not copy.differences["macro"].interval.excludes_zero
    assert headline(copy, comparison, 3) == (
        "no clear difference from natural: 0.000 [0.000, 0.000] bits/byte over 6 paired seeds, same FLOPs."
    )


def test_csv_has_every_number(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path, "odm", 4, status="failed", reason="a loss, not a number")
    runs = [read_run(folder) for folder in find_runs([tmp_path])]
    sections, comparisons = compare_runs(runs, parse_metric("macro/bits_per_byte", runs), None)
    rows = list(csv.DictReader(io.StringIO(render_csv(runs, sections, comparisons, base=tmp_path))))
    assert len(rows) == 16
    row = next(row for row in rows if (row["method"], row["seed"]) == ("odm", "2"))
    assert float(row["difference"]) == pytest.approx(by_hand(-0.021)[1])
    assert float(row["evaluation/domains/python/bits_per_byte"]) == final_scores(2, -0.021, 0.006)["python"]
    assert float(row["flops/measuring"]) > 0 and row["counted"] == "true" and row["versions/torch"] == "2.6.0"
    failed = next(row for row in rows if row["status"] == "failed")
    assert (failed["counted"], failed["reason"], failed["difference"]) == ("false", "a loss, not a number", "")


def test_importing_reports_is_light():
    code = (
        "import sys, regimen.reports, regimen.reports.assemble\n"
        "heavy = {'matplotlib', 'torch', 'lightning', 'pytorch_lightning', 'hydra', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert callable(regimen.reports.build)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
