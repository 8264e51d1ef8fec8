"""What stands beside the methods: the untrained model, a random subset, and the metric at equal tokens; by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from synthetic_runs import BASE, DOMAINS, STEPS, TOKENS_PER_STEP, final_scores, write_run

from regimen.reports import build
from regimen.reports.anchors import by_chance
from regimen.reports.assemble import compare_runs, parse_metric
from regimen.reports.budgets import ranking_table
from regimen.reports.compare import Comparison
from regimen.reports.content import make_report
from regimen.reports.inventory import notices, runs_table
from regimen.reports.runs import Run, find_runs, read_run
from regimen.reports.tables import chance_table, score_table
from regimen.reports.tables import test_table as against_table
from regimen.reports.tidy import render_csv
from regimen.reports.wording import ABOUT, against_chance, at_equal_budgets, headline

T2 = 4.302652729911275  # Student's t of 2 degrees of freedom at .975
METRIC = "macro/bits_per_byte"
UNTRAINED = np.mean(list(BASE.values())) + 3.2 * (1 - math.exp(-7)) + 0.35


def loaded(root, metric=METRIC, baseline=None) -> tuple[list[Run], Comparison]:
    runs = [read_run(folder) for folder in find_runs([root])]
    (comparison,) = compare_runs(runs, parse_metric(metric, runs), baseline)[1]
    return runs, comparison


def result_of(comparison, label):
    return next(result for result in comparison.results if result.arm.label == label)


def row_of(table, label):
    return next(row for row in table.rows if row[0].text == label)


def cell_of(table, label, column):
    return row_of(table, label)[table.columns.index(column)]


def score(seed, shift, noise):
    return np.mean(list(final_scores(seed, shift, noise).values()))


def close(interval, values):
    values = np.array(values)
    half = T2 * values.std(ddof=1) / math.sqrt(3)
    found = (interval.mean, interval.low, interval.high)
    assert found == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))


def drop_evaluations_at_0(folder):
    file = folder / "metrics.jsonl"
    rows = [line for line in file.read_text().splitlines() if json.loads(line).get("step") != 0]
    file.write_text("\n".join(rows) + "\n")


# ------------------------------------------------------------------------------------------------ zero-shot


def write_starts(root, methods=("natural", "odm"), starts=(0.0, 0.3, -0.1)):
    """Three seeds, whose weights before training are worse by `starts`, the same for every method."""
    for method in methods:
        for seed, start in enumerate(starts, start=1):
            write_run(root, method, seed, start=start)
    return root


def test_zero_shot_is_the_mean_over_seeds_and_no_method(tmp_path):
    _, comparison = loaded(write_starts(tmp_path))
    expected = UNTRAINED + np.array([0.0, 0.3, -0.1])
    close(comparison.zero_shot.scores["macro"], expected)
    close(comparison.zero_shot.scores["math"], expected - np.mean(list(BASE.values())) + BASE["math"])
    table = score_table(comparison)
    last = table.rows[-1]
    assert (last[0].text, last[0].detail) == ("zero-shot", "untrained, 3 seeds")
    assert cell_of(table, "zero-shot", "macro").text.startswith(f"{expected.mean():.3f} \u00b1 ")
    assert cell_of(table, "zero-shot", "Tokens").text == "0"
    assert {result.arm.label for result in comparison.results} == {"natural", "odm"}
    assert all(place.label != "zero-shot" for ranking in comparison.rankings for place in ranking.places)
    assert "no ranking" in table.notes[-1]


def test_zero_shot_of_a_pretrained_model_is_one_number(tmp_path):
    """Every seed begins with the same weights: an interval over them would be a false one of width 0."""
    _, comparison = loaded(write_starts(tmp_path, starts=(0.2, 0.2, 0.2)))
    assert comparison.zero_shot.shared and comparison.zero_shot.seeds == (1, 2, 3)
    assert not comparison.zero_shot.scores["macro"].bounded
    row = score_table(comparison).rows[-1]
    assert row[0].detail == "untrained, same for all seeds" and row[1].text == f"{UNTRAINED + 0.2:.3f}"


def test_a_seed_counts_once_and_any_method_speaks_for_it(tmp_path):
    write_starts(tmp_path)
    drop_evaluations_at_0(tmp_path / "natural-nano-local-seed2")
    for method in ("natural", "odm"):
        drop_evaluations_at_0(tmp_path / f"{method}-nano-local-seed3")
    _, comparison = loaded(tmp_path)
    assert comparison.zero_shot.seeds == (1, 2)
    assert comparison.zero_shot.scores["macro"].mean == pytest.approx(UNTRAINED + 0.15)
    assert "No run of seed 3 was evaluated there." in score_table(comparison).notes[-1]


def test_without_an_evaluation_at_step_0_the_reason_is_given(tmp_path):
    for folder in write_starts(tmp_path).iterdir():
        drop_evaluations_at_0(folder)
    _, comparison = loaded(tmp_path)
    table = score_table(comparison)
    assert comparison.zero_shot is None and table.rows[-1][0].text != "zero-shot"
    assert "No zero-shot row" in table.notes[-1] and "evaluation.at=[0,0.5,1]" in table.notes[-1]


def test_a_method_that_begins_elsewhere_is_named(tmp_path):
    write_starts(tmp_path, methods=("natural",))
    for seed in (1, 2, 3):
        write_run(tmp_path, "odm", seed, start=-2.0)
    _, comparison = loaded(tmp_path)
    assert comparison.zero_shot.strays == ("odm",)
    close(comparison.zero_shot.scores["macro"], UNTRAINED + np.array([0.0, 0.3, -0.1]))
    assert "odm begins with other weights" in score_table(comparison).notes[-1]


def test_another_pool_says_nothing_of_zero_shot(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, "natural", seed, start=0.1 * seed)
        write_run(tmp_path, "odm", seed + 3, start=9.0, pool="pool-b2")
    assert loaded(tmp_path)[1].zero_shot.seeds == (1, 2, 3)


# ------------------------------------------------------------------------------------------------ random


def write_selectors(root, *, random=(1, 2, 3), **settings):
    for seed in (1, 2, 3):
        write_run(root, "natural", seed)
        write_run(root, "topk", seed, shift=-0.03, noise=0.006, **settings)
    for seed in random:
        write_run(root, "random", seed, shift=0.011, noise=0.004)
    return root


def test_selectors_are_paired_with_random_and_with_the_baseline(tmp_path):
    _, comparison = loaded(write_selectors(tmp_path))
    mine = np.array([score(seed, -0.03, 0.006) for seed in (1, 2, 3)])
    chance = np.array([score(seed, 0.011, 0.004) for seed in (1, 2, 3)])
    plain = np.array([score(seed, 0.0, 0.0) for seed in (1, 2, 3)])
    close(result_of(comparison, "topk").differences["macro"].interval, mine - plain)
    (beside,) = comparison.chance
    assert [result.arm.label for result in beside.results] == ["random", "topk"]
    close(result_of(beside, "topk").differences["macro"].interval, mine - chance)
    assert result_of(beside, "topk").test.family == 1
    table = chance_table(beside)
    assert table.title == f"Against random: {METRIC}"
    assert cell_of(table, "topk", "Difference").text == f"{(mine - chance).mean():+.3f}".replace("-", "\u2212")
    assert cell_of(table, "topk", "Rows kept").text == "1.81 k" and "kept 1.81 k of 6.00 k rows" in table.notes[0]
    assert (
        f"Against random: \u2212{abs((mine - chance).mean()):.3f}"
        in against_chance(result_of(comparison, "topk"), comparison, 3)[0]
    )
    assert against_chance(result_of(comparison, "random"), comparison, 3) == []
    assert comparison.alone == () and notices(comparison) == []


def test_only_shared_seeds_are_paired_with_random(tmp_path):
    _, comparison = loaded(write_selectors(tmp_path, random=(2, 3, 5)))
    difference = result_of(comparison.chance[0], "topk").differences["macro"]
    assert difference.seeds == (2, 3) and difference.unpaired == (1, 5)


def test_random_as_the_baseline_needs_no_second_table(tmp_path):
    _, comparison = loaded(write_selectors(tmp_path), baseline="random")
    assert comparison.baseline.arm.label == "random" and comparison.chance == () and notices(comparison) == []


def test_without_random_the_report_says_what_to_type(tmp_path):
    config = {"strategies": {"topk": {"ratio": None, "count": None, "token_ratio": 0.05}}}
    _, comparison = loaded(write_selectors(tmp_path, random=(), config=config))
    (line,) = notices(comparison)
    assert "topk selects rows, and no random subset is beside" in line
    assert "add method=random strategies.random.ratio=null strategies.random.token_ratio=0.05 seed=1,2,3 to" in line
    assert line.count(". ") == 0, "one sentence"
    page = build([tmp_path]).read_text()
    assert "no random subset is beside" in page


def test_a_ratio_replaces_the_default_ratio(tmp_path):
    config = {"strategies": {"topk": {"ratio": 0.1, "count": None, "token_ratio": None}}}
    _, comparison = loaded(write_selectors(tmp_path, random=(), config=config))
    assert "add method=random strategies.random.ratio=0.1 seed=1,2,3 to" in notices(comparison)[0]


def test_methods_that_select_nothing_need_no_random(tmp_path):
    assert notices(loaded(write_starts(tmp_path))[1]) == []


def test_a_selector_with_a_mixer_is_compared_with_random_and_that_mixer(tmp_path):
    for seed in (1, 2, 3):
        for method in ("natural", "random", "topk", "topk+odm"):
            write_run(tmp_path, method, seed)
    _, comparison = loaded(tmp_path)
    assert [result.arm.label for result in comparison.chance[0].results] == ["random", "topk"]
    assert [arm.label for arm in comparison.alone] == ["topk+odm"]
    assert "'method=[random,odm]'" in notices(comparison)[0]
    for seed in (1, 2, 3):
        write_run(tmp_path, "random+odm", seed)
    _, comparison = loaded(tmp_path)
    pairs = {(b.baseline.arm.label, b.results[1].arm.label) for b in comparison.chance}
    assert pairs == {("random", "topk"), ("random+odm", "topk+odm")} and comparison.alone == ()


def test_each_amount_is_compared_with_its_own_random_subset(tmp_path):
    def config(name, **amount):
        return {"strategies": {name: {"ratio": None, "count": None, "token_ratio": None} | amount}}

    for seed in (1, 2, 3):
        write_run(tmp_path, "natural", seed, config={"strategies": {}})
        for i, amount in enumerate(({"ratio": 0.1}, {"token_ratio": 0.1})):
            for method in ("random", "topk"):
                write_run(tmp_path, method, seed, config=config(method, **amount), folder=f"{method}-{i}-{seed}")
    _, comparison = loaded(tmp_path)
    pairs = {
        b.baseline.arm.label.partition(" ")[2]: b.results[1].arm.label.partition(" ")[2] for b in comparison.chance
    }
    assert pairs == {f"({a})": f"({a})" for a in ("ratio=0.1, token_ratio=null", "ratio=null, token_ratio=0.1")}
    arms = comparison.section.arms
    assert len(by_chance(arms).pairs) == 2 and by_chance([arm for arm in arms if arm.method != "random"]).pairs == ()


# ------------------------------------------------------------------------------------------------ tokens


def write_ragged(root, *, tokens_per_step=3600, points=13, methods=("natural", "topk", "random")):
    """A selector whose rows hold an eighth fewer target tokens, as many steps as the others."""
    for seed in (1, 2, 3):
        for method in methods:
            shift, noise = {"topk": (-0.03, 0.006), "random": (0.01, 0.004)}.get(method, (0.0, 0.0))
            per_step = tokens_per_step if method == "topk" else TOKENS_PER_STEP
            write_run(root, method, seed, shift=shift, noise=noise, tokens_per_step=per_step, points=points)
    return root


def interpolated(run, at):
    """Linear between the two evaluations around `at`, written out."""
    rows = [(row["tokens"], row[METRIC]) for row in run.curve]
    for (x, y), (u, v) in pairwise(rows):
        if x <= at <= u:
            return y + (v - y) * (at - x) / (u - x)
    raise AssertionError("not reached")


def test_ragged_rows_are_flagged_and_matched(tmp_path):
    _, comparison = loaded(write_ragged(tmp_path))
    topk, at = result_of(comparison, "topk"), STEPS * 3600
    assert topk.excess == pytest.approx(3600 / TOKENS_PER_STEP - 1) and topk.unmatched and topk.obstacles == ()
    assert not result_of(comparison, "random").unmatched
    mine = np.array([run.score("macro", "bits_per_byte") for run in topk.arm.counted])
    base = np.array([interpolated(run, at) for run in comparison.baseline.arm.counted])
    plain = np.array([run.score("macro", "bits_per_byte") for run in comparison.baseline.arm.counted])
    close(topk.differences["macro"].interval, mine - plain)
    ranking = comparison.ranking("tokens")
    assert ranking.at == at
    place = ranking.of(topk.arm)
    close(place.difference, mine - base)
    assert not place.interpolated and ranking.of(comparison.baseline.arm).interpolated and ranking.between(place)
    assert place.values == pytest.approx(dict(enumerate(mine, start=1)))
    table = score_table(comparison)
    assert table.columns[:5] == ("Method", "macro", "Tokens", "At equal tokens", "micro")
    tokens = cell_of(table, "topk", "Tokens")
    assert (tokens.text, tokens.detail, tokens.tone) == ("1.08 M", "\u221212.1%", "flag")
    assert cell_of(table, "natural", "Tokens").tone == "" and cell_of(table, "zero-shot", "Tokens").text == "0"
    assert cell_of(table, "topk", "At equal tokens").text.startswith(f"{mine.mean():.3f}"), "an evaluation of its own"
    assert cell_of(table, "natural", "At equal tokens").text.startswith(f"{ABOUT}\u00a0{base.mean():.3f}")
    assert cell_of(table, "zero-shot", "At equal tokens").text == "\u2013"
    matched = cell_of(against_table(comparison), "topk", "At equal tokens")
    assert matched.text == f"{ABOUT}\u00a0{(mine - base).mean():+.3f}".replace("-", "\u2212")
    assert f"at 1.080 M tokens, the most that every run reached; {ABOUT} is read between" in " ".join(table.notes)
    assert f"{ABOUT} is read between two evaluations" in ranking_table(ranking, comparison).notes[0]


def test_ragged_rows_in_words(tmp_path):
    runs, comparison = loaded(write_ragged(tmp_path))
    topk = result_of(comparison, "topk")
    assert notices(comparison) == [
        "At equal steps, topk (\u221212.1%) trained on another number of target tokens than natural: see the column at "
        "equal tokens, too."
    ]
    assert "over 3 paired seeds, \u221212.1% tokens, \u22127.7% FLOPs." in headline(topk, comparison, 3)
    equal = at_equal_budgets(topk, comparison, 3)
    assert [text.partition(":")[0] for text in equal] == ["At equal tokens", "At equal FLOPs"]
    assert f", at equal tokens {ABOUT}" in against_chance(topk, comparison, 3)[0]
    (beside,) = comparison.chance
    assert beside.ranking("tokens").at == comparison.ranking("tokens").at
    assert cell_of(chance_table(beside), "topk", "Tokens").detail == "\u221212.1%"
    report = make_report([comparison], runs, [comparison.section], base=tmp_path)
    assert ("Tokens per run", "1.08 M to 1.23 M") in report.facts


@pytest.mark.parametrize(("per_step", "flagged"), [(4056, False), (4055, True), (4136, False), (4137, True)])
def test_one_per_cent_is_the_border(tmp_path, per_step, flagged):
    _, comparison = loaded(write_ragged(tmp_path, tokens_per_step=per_step, methods=("natural", "topk")))
    assert result_of(comparison, "topk").unmatched == flagged
    assert ("At equal tokens" in score_table(comparison).columns) == flagged


def test_a_budget_that_was_evaluated_is_exact(tmp_path):
    """Half of the tokens per step: the baseline's evaluation at half of its steps is at the same tokens."""
    _, comparison = loaded(write_ragged(tmp_path, tokens_per_step=TOKENS_PER_STEP // 2, points=3))
    assert not any(place.interpolated for place in comparison.ranking("tokens").places)
    assert ABOUT not in " ".join(cell.text for row in score_table(comparison).rows for cell in row)
    half = [run.curve[1][METRIC] for run in comparison.baseline.arm.counted]
    close(comparison.at_equal_tokens(comparison.baseline).score, half)


def test_tokens_are_compared_on_shared_seeds(tmp_path):
    """Each seed draws rows of other lengths, so a seed that one side lacks must not look like a preference."""
    for seed, per_step in ((1, 4000), (2, 4400), (3, 4800)):
        write_run(tmp_path, "natural", seed, tokens_per_step=per_step, config={"budget": {"steps": STEPS}})
        if seed > 1:
            write_run(tmp_path, "topk", seed, tokens_per_step=per_step, config={"budget": {"steps": STEPS}})
    topk = result_of(loaded(tmp_path)[1], "topk")
    assert topk.excess == 0 and not topk.unmatched


def test_other_steps_are_another_budget(tmp_path):
    write_ragged(tmp_path, methods=("natural",))
    for seed in (1, 2, 3):
        write_run(tmp_path, "topk", seed, steps=STEPS // 2)
    _, comparison = loaded(tmp_path)
    topk = result_of(comparison, "topk")
    assert "another token budget" in topk.obstacles[0] and topk.differences == {} and topk.unmatched
    assert any("NOT comparable" in line for line in notices(comparison))
    assert at_equal_budgets(topk, comparison, 3)[0].startswith("At equal tokens: ")


def test_every_run_tells_its_tokens(tmp_path):
    runs, comparison = loaded(write_ragged(tmp_path))
    table = runs_table(runs, [comparison.section], base=tmp_path)
    texts = {(row[0].text, row[table.columns.index("Tokens")].text) for row in table.rows}
    assert texts == {("natural", "1.23 M"), ("random", "1.23 M"), ("topk", "1.08 M")}
    rows = list(csv.DictReader(io.StringIO(render_csv(runs, [comparison.section], [comparison], base=tmp_path))))
    by_run = {(row["method"], row["seed"]): row for row in rows}
    topk, random, natural = (by_run[method, "2"] for method in ("topk", "random", "natural"))
    last = {row["method"]: float(row["evaluation/macro/bits_per_byte"]) for row in (topk, random, natural)}
    assert float(topk["difference_to_random"]) == pytest.approx(last["topk"] - last["random"])
    assert random["difference_to_random"] == natural["difference_to_random"] == ""
    assert float(topk["zero_shot"]) == pytest.approx(UNTRAINED)
    baseline = comparison.baseline.arm.by_seed()[2]
    assert float(natural["at_equal_tokens"]) == pytest.approx(interpolated(baseline, STEPS * 3600))
    assert float(topk["at_equal_tokens"]) == last["topk"]


def test_another_metric_carries_its_columns_along(tmp_path):
    _, comparison = loaded(write_ragged(tmp_path), metric="math/bits_per_byte")
    assert score_table(comparison).columns == (
        *("Method", "macro", "micro", "english", "math", "Tokens", "At equal tokens", "python"),
    )
    assert set(comparison.zero_shot.scores) == {"macro", "micro", *DOMAINS}


def test_without_evaluations_there_is_no_value_at_equal_tokens(tmp_path):
    for folder in write_ragged(tmp_path).iterdir():
        (folder / "metrics.jsonl").write_text("")
    _, comparison = loaded(tmp_path)
    table = score_table(comparison)
    assert cell_of(table, "topk", "At equal tokens").text == "\u2013"
    assert "no value at equal tokens" in " ".join(table.notes) and "No zero-shot row" in table.notes[-1]
    assert build([tmp_path]).is_file()
