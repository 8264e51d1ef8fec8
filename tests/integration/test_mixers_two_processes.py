"""Every mixer that learns sees each domain's own losses, on one process and on two alike: same shares, same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_methods import overrides_of
from tests.support.ranks import on_two_ranks
from tests.support.runs import lines, run, write_corpus

pytestmark = pytest.mark.processes

METHODS = ("odm", "ado", "aioli", "pike", "skillit", "sheared", "velocitune", "doremi", "doge")
SCRIPT = """
import sys
from pathlib import Path
from tests.support.runs import run
corpus, home, out, *cells = sys.argv[1:]
for cell in cells:
    method, *overrides = cell.split("|")
    run(Path(corpus), Path(home), *overrides, f"run_dir={out}/{method}", f"paths.store={out}/store", "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.micro_batch_size=2")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Outputs of one process and of two, a folder per method."""
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"))
    home, one, two = (tmp_path_factory.mktemp(name) for name in ("home", "one", "two"))
    cells = {method: overrides_of(method, corpus, home) for method in METHODS}
    for method, overrides in cells.items():
        run(corpus, home, *overrides, f"run_dir={one}/{method}", f"paths.store={one}/store")
    both = ["|".join([method, *overrides]) for method, overrides in cells.items()]
    on_two_ranks(SCRIPT, [str(corpus), str(home), str(two), *both], name="mixers")
    return one, two


def decided(folder: Path) -> list[dict[str, Any]]:
    return [row["mixture"] for row in lines(folder / "record.jsonl") if row["kind"] == "mixer"]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_shares_and_rows(folders: tuple[Path, Path], method: str) -> None:
    one, two = (folder / method for folder in folders)
    shares = decided(one)
    assert len(shares) == len(decided(two)) > 0
    for a, b in zip(shares, decided(two), strict=True):
        assert b == pytest.approx(a, abs=1e-5)
    batches = [[r["batch"] for r in lines(f / "metrics.jsonl") if r["split"] == "train"] for f in (one, two)]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("method", ["odm", "ado", "aioli", "skillit", "pike"])
def test_the_shares_move(folders: tuple[Path, Path], method: str) -> None:
    """So that equal shares above say something."""
    shares = decided(folders[0] / method)
    assert any(abs(a - b) > 1e-3 for a, b in zip(shares[0].values(), shares[-1].values(), strict=True))
