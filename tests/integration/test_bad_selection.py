"""What a user can get wrong with methods that select rows: refused in words, and before anything is trained for it."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from regimen.runs.experiment import make_pool
from tests.support.cli import CommandLine
from tests.support.runs import run, settings_of

TARGET = "dataset.target={path: null, from: [sums], rows_per_subtask: 4, seed: 0}"
FILES = "regimen.signals.file_scores.FileScores"


@pytest.fixture(scope="module")
def examples(home: Path) -> list[str]:
    """Overrides for short examples of two tasks, of which a few are the target set."""
    records = [{"instruction": f"say {i}", "output": f"{i % 5}", "task": "ab"[i % 2]} for i in range(60)]
    (home / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [
        *("method=data_whisperer", "dataset=sft_files", "objective=sft", f"dataset.path={home}/examples.jsonl"),
        *("dataset.tokenizer.kind=bytes", "dataset.seq_len=256", "dataset.domain_field=task", "dataset.overlap.n=0"),
        *("strategies.data_whisperer.by.shown=3", "strategies.data_whisperer.by.asked=1"),
        *("strategies.data_whisperer.by.max_new_tokens=8", TARGET.replace("sums", "a")),
    ]


def assert_refused(
    regimen: CommandLine, overrides: list[str], words: list[str], *, commands: tuple[str, ...] = ("train",)
) -> None:
    """The error has the words, the same from every command, and neither a stage nor the run was begun."""
    stages = set(regimen.home.glob("store/runs/*"))
    for command in commands:
        error = regimen.refused(*overrides, command=command)
        assert error.startswith("error: "), error
        assert [word for word in words if word not in error] == [], error
    assert set(regimen.home.glob("store/runs/*")) == stages, "nothing is trained for what is refused"


def assert_stopped(regimen: CommandLine, overrides: list[str], words: list[str]) -> None:
    """What the first decision shows: the error has the words, the summary says why, and no step was made."""
    folder = regimen.home / "outputs" / "stopped"
    done = regimen.small("train", *overrides, f"run_dir={folder}")
    assert done.status == 1 and "Traceback" not in done.err and len(done.err.splitlines()) < 40, done.err
    assert done.err.startswith("error: "), done.err
    assert [word for word in words if word not in done.err] == [], done.err
    told = json.loads((folder / "summary.json").read_text())
    assert (told["status"], told["steps"]) == ("failed", 0) and told["reason"] in done.err
    shutil.rmtree(folder)


# ---- no target set ---------------------------------------------------------------------------------------------

AIMING = (
    *("cluster_less", "dsir", "dvemb", "greats", "in_run_shapley", "in_run_values", "influence_distillation"),
    *("less", "less_online", "near", "nice", "rds", "tsds"),
)
STAGED = ("dvemb", "in_run_shapley", "less")
NO_TARGET = ["aims at a target set", "dataset.target.path=FILE", "dataset.target.from=[DOMAIN,...]"]


@pytest.mark.parametrize("method", AIMING)
def test_a_method_without_the_target_set_that_it_aims_at(regimen: CommandLine, method: str) -> None:
    """Also where it would decide after the last step of so short a run, and never notice."""
    commands = ("train", "check", "score") if method in STAGED else ("train",)
    assert_refused(regimen, [f"method={method}"], NO_TARGET, commands=commands)


def test_questions_without_a_target_set(regimen: CommandLine, examples: list[str]) -> None:
    assert_refused(regimen, examples[:-1], ["data_whisperer", *NO_TARGET])


# ---- more rows than there are ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["less", "near", "topk", "tsds"])
def test_more_rows_than_there_are(regimen: CommandLine, method: str) -> None:
    asked = [f"method={method}", TARGET, f"strategies.{method}.ratio=null", f"strategies.{method}.count=100000"]
    words = ["count is more than the rows to choose from", "100000", "1 to "]
    assert_refused(regimen, asked, words, commands=("train", "check"))


def test_a_share_of_the_rows_that_is_none(regimen: CommandLine) -> None:
    words = ["keeps no row", "ratio=0.0001 of", "raise ratio"]
    assert_refused(regimen, ["method=less", TARGET, "strategies.less.ratio=0.0001"], words)


def test_more_rows_than_target_rows_reach(regimen: CommandLine) -> None:
    few = ["method=near", TARGET, "strategies.near.ratio=0.5", "strategies.near.neighbours=2"]
    assert_stopped(regimen, few, ["neighbours", "rows to keep", "search more neighbours"])
    every = ["method=tsds", TARGET, "strategies.tsds.ratio=1.0"]
    assert_stopped(regimen, every, ["rows with a probability", "lower alpha", "draw=repeats"])


# ---- models ----------------------------------------------------------------------------------------------------


def test_adapters_that_were_never_trained(regimen: CommandLine) -> None:
    asked = ["method=less_online", TARGET, "strategies.less_online.when.start=0"]
    assert_stopped(regimen, [*asked, "model.lora.rank=4"], ["untrained", "lora_B", "when.start above 0"])
    assert_stopped(regimen, asked, ["needs the moments", "adam=none"])


def test_a_reference_that_reads_other_tokens(regimen: CommandLine, corpus: Path, home: Path) -> None:
    other = run(corpus, home, "method=uniform", "dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300")
    words = ["another tokenizer", str(other), "same dataset.tokenizer"]
    assert_refused(regimen, ["method=rho_loss", f"++strategies.rho_loss.reference={other}"], words)
    assert_refused(regimen, ["method=less", TARGET, f"++strategies.less.by.run={other}"], words)


def test_a_reference_that_is_no_run(regimen: CommandLine, home: Path) -> None:
    for path in (home, home / "nothing"):
        words = ["not a run folder", f"got:     {path}\n"]
        assert_refused(regimen, ["method=rho_loss", f"++strategies.rho_loss.reference={path}"], words)


def test_a_model_without_attention_weights(
    regimen: CommandLine, examples: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be switched to the attention that has them."""
    monkeypatch.setattr("regimen.training.attention._eager", lambda model: nullcontext())
    words = ["no attention weights", "model.attn_implementation=sdpa", "model.attn_implementation=eager"]
    assert_stopped(regimen, examples, words)
    assert_stopped(regimen, [*examples, "strategies.data_whisperer.by.layer=1"], ["no such layer", "0 to 0"])


# ---- what models say, and files --------------------------------------------------------------------------------


def test_answers_that_cannot_be_read(regimen: CommandLine, examples: list[str]) -> None:
    """Of an untrained model: a question alone is always answered; of two, one is asked again; of four, two."""
    four = [*examples, "strategies.data_whisperer.by.asked=4"]
    assert_stopped(regimen, four, ["answered no question", "3 examples and 4 questions", "`asked`"])
    done = regimen.small("train", *examples, "strategies.data_whisperer.by.asked=2")
    assert done.status == 0, done.err


def test_examples_that_do_not_fit(regimen: CommandLine, examples: list[str]) -> None:
    short = [*examples, "model.config.max_position_embeddings=300"]
    assert_stopped(regimen, short, ["context is too short", "shown=3, asked=1", "300 tokens together", "lower the"])


def test_text_that_asks_nothing(regimen: CommandLine) -> None:
    assert_stopped(regimen, ["method=data_whisperer", TARGET], ["asks nothing", "dataset=sft_files", "objective=sft"])


def test_scores_that_are_not_numbers(regimen: CommandLine, corpus: Path, home: Path, tmp_path: Path) -> None:
    rows = make_pool(settings_of(corpus, home), progress=False).train.index.rows
    scores = tmp_path / "scores.csv"
    scores.write_text("id,score\n" + "".join(f"{i},{'nan' if i == 3 else i}\n" for i in range(rows)))
    (tmp_path / "few.csv").write_text("id,score\n0,1\n")
    words = ["NaN for 1 of", "ids [3]", "keep only rows that have a score"]
    assert_stopped(regimen, ["method=scores", f"strategies.scores.by.path={scores}"], words)
    by = f"strategies.topk.by={{_target_: {FILES}, path: {scores}}}"
    assert_stopped(regimen, ["method=topk", by], words)
    few = ["method=scores", f"strategies.scores.by.path={tmp_path}/few.csv"]
    assert_stopped(regimen, few, ["NaN for", "cannot be ranked"])
    dropped = [*few, "strategies.scores.missing=drop", "strategies.scores.ratio=null", "strategies.scores.count=5"]
    assert_stopped(regimen, dropped, ["more than the rows to choose from", "1 to 1"])


def test_preferences_that_are_no_pairs(regimen: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n{"prompt": "p"}\n')
    words = ["line 2 of the preference pairs", "prompt, chosen and rejected"]
    assert_refused(regimen, ["method=rose", f"strategies.rose.by.path={tmp_path}/pairs.jsonl"], words)
