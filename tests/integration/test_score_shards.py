"""`regimen score` in parts: together they are what one process scores; what needs all rows is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from regimen.runs.score_shards import Shard
from tests.support.cli import CommandLine

BY = "score.by=${signal.loss}"


@pytest.mark.parametrize(("rows", "count"), [(0, 1), (1, 3), (7, 3), (100, 7)])
def test_the_parts_hold_every_id_once_in_order(rows: int, count: int) -> None:
    parts = [Shard(index, count).ids(rows) for index in range(count)]
    assert torch.equal(torch.cat(parts), torch.arange(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("unit", ["row", "document"])
def test_a_multirun_of_shards_gives_the_file_of_one_process(regimen: CommandLine, tmp_path: Path, unit: str) -> None:
    where = [f"run_dir={tmp_path}/{name}" for name in ("one", "many")]
    assert regimen.small("score", BY, f"score.unit={unit}", where[0]).status == 0
    ask = (BY, f"score.unit={unit}", where[1], "shard.count=3")
    done = regimen.small("score", *ask, "shard.index=range(3)", flags=("-m",))
    assert done.status == 0, done.err
    one, many = (pq.read_table(tmp_path / name / "scores.parquet").to_pydict() for name in ("one", "many"))
    assert {k: v for k, v in many.items() if k not in ("score", "rank")} == {
        k: v for k, v in one.items() if k not in ("score", "rank")
    }
    # A batch of another size may round differently.
    assert many["score"] == pytest.approx(one["score"], rel=1e-5, nan_ok=True)
    assert sorted(many["rank"]) == list(range(len(many["rank"])))
    told, alone = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("many", "one"))
    assert told["shards"] == 3 and told["rows"] == alone["rows"] and told["pool"] == alone["pool"]
    assert told["measuring"]["flops"] == pytest.approx(alone["measuring"]["flops"])
    assert "scored before" in regimen.small("score", *ask, "shard.index=1").err


def test_a_missing_shard_leaves_no_whole_and_one_of_another_seed_is_refused(
    regimen: CommandLine, tmp_path: Path
) -> None:
    ask = (BY, f"run_dir={tmp_path}/scores", "shard.count=2")
    done = regimen.small("score", *ask, "shard.index=1")
    assert done.status == 0 and "shard 1 of 2 is scored" in done.out
    assert not (tmp_path / "scores" / "scores.parquet").exists()
    refused = regimen.small("score", *ask, "shard.index=0", "seed=5")
    assert refused.status == 1 and "different settings" in refused.err
    assert not (tmp_path / "scores" / "manifest.json").exists()


def test_what_needs_all_rows_is_refused(regimen: CommandLine) -> None:
    assert "method=scores" in regimen.refused("method=topk", "shard.count=3", command="score")
    compares = "score.by={_target_: regimen.signals.kneser_ney.NgramPerplexity}"
    assert "NgramPerplexity compares rows" in regimen.refused(compares, "shard.count=3", command="score")
    assert "0 <= index < count" in regimen.refused(BY, "shard.count=3", "shard.index=3", command="score")
