"""BiMix and M4 on the runs published with Data Mixing Laws (arXiv 2403.16952): five groups of the Pile, 70M parameters.

The runs have no licence and are no part of this project. Who has a copy of the repository `yegcjs/mixinglaws` names
its folder: MIXING_LAWS_RUNS=FOLDER. The same code reads a file in that layout made of the published parameters, so that
what the goldens rest on is tested everywhere.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from regimen.mixing.laws.bimix import BiMix, FittedBiMix
from regimen.mixing.laws.constraints import Constraints
from regimen.mixing.laws.mixing_laws import MixingLaws
from regimen.mixing.laws.table import LawTable
from tests.reference.laws import mixtures_of
from tests.reference.test_mixing_laws import FLOORS, GROUPS, law
from tests.support.shared import DATA

# Validation subsets of each group and their share of the validation tokens, the groups in the order of the shares in a
# run's name.
SUBSETS: dict[str, dict[str, float]] = {
    "academic": {
        "ArXiv": 0.101852, "PubMed_Abstracts": 0.023920, "PhilPapers": 0.005015, "NIH_ExPorter": 0.001929,
        "FreeLaw": 0.054398, "USPTO_Backgrounds": 0.028549, "PubMed_Central": 0.125,
    },
    "prose": {"PG19": 0.018519, "Books3": 0.126543, "BookCorpus2": 0.006944},
    "dialogue": {
        "Ubuntu_IRC": 0.008102, "OpenSubtitles": 0.015818, "EuroParl": 0.008102, "Enron_Emails": 0.001157,
        "HackerNews": 0.007330, "YoutubeSubtitles": 0.009645,
    },
    "symbolic": {"DM_Mathematics": 0.021605, "Github": 0.095293},
    "internet": {"Pile-CC": 0.157022, "OpenWebText2": 0.090664, "StackExchange": 0.055170, "Wikipedia_en": 0.037423},
}  # fmt: skip
NAMES = list(SUBSETS)
# The fit of BiMix to steps 10,000 to 29,000, and the optimum at 30,000.
ALPHA = {"academic": 0.0532, "prose": 0.0122, "dialogue": 0.0312, "symbolic": 0.0782, "internet": 0.0363}
OPTIMUM = {"academic": 0.2674, "prose": 0.0853, "dialogue": 0.1764, "symbolic": 0.2314, "internet": 0.2395}
HUBER = {"academic": 5.6829e-4, "prose": 1.2334e-4, "dialogue": 5.5134e-4, "symbolic": 1.4282e-4, "internet": 8.166e-5}


def read_runs(file: Path) -> LawTable:
    """A row per run and step from 10,000 on whose 22 losses are all there; runs numbered above 900 are left out."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for line in file.read_text().splitlines():
        folder, data, loss = line.split()
        name, step = folder.rstrip("/").split("/")[-2:]
        number, _, shares = name.split("_", 1)[1].partition("-")
        if int(number) <= 900 and int(step) >= 10_000:
            found[shares, int(step)][data.split("/")[-1].split(".")[-2]] = float(loss)
    whole = {at: losses for at, losses in found.items() if len(losses) == sum(map(len, SUBSETS.values()))}
    rows = sorted(whole)
    groups = [
        [np.average([whole[at][name] for name in part], weights=list(part.values())) for part in SUBSETS.values()]
        for at in rows
    ]
    return LawTable(
        domains=NAMES,
        mixtures=np.array([[float(share) for share in shares.split("-")] for shares, _ in rows]),
        targets=NAMES,
        losses=np.array(groups),
        steps=np.array([float(step) for _, step in rows]),
        runs=[shares for shares, _ in rows],
    )


@pytest.fixture(scope="module")
def published() -> LawTable:
    file = Path(os.environ.get("MIXING_LAWS_RUNS", DATA / "mixinglaws")) / "data" / "5Mix" / "70M.txt"
    if not file.is_file():
        pytest.skip("needs the unlicensed runs of Data Mixing Laws: MIXING_LAWS_RUNS=FOLDER of yegcjs/mixinglaws")
    return read_runs(file)


def test_golden_huber_minima_and_floors(published):
    at = published.rows(published.steps == 30_000)
    assert len(at) == 26
    fitted = MixingLaws().fit(at, dict(zip(NAMES, GROUPS, strict=True)))
    found = dict(zip(fitted.targets, fitted.huber, strict=True))
    assert found == pytest.approx(HUBER, rel=1e-3)
    assert dict(zip(fitted.targets, fitted.c, strict=True)) == pytest.approx(
        dict(zip(NAMES, FLOORS, strict=True)), abs=2e-3
    )


def test_golden_bivariate_law(published):
    """B and beta are hardly told by steps of one decade: alpha, and what follows from it, are the goldens."""
    fitted = BiMix(zeros="drop").fit(published.rows(published.steps < 30_000))
    assert isinstance(fitted, FittedBiMix)
    assert dict(zip(fitted.targets, fitted.alpha, strict=True)) == pytest.approx(ALPHA, rel=0.02)
    best = fitted.at(30_000).optimum(Constraints())
    assert dict(zip(fitted.domains, best, strict=True)) == pytest.approx(OPTIMUM, abs=0.01)


def test_the_layout_is_read_and_the_published_law_returns(tmp_path):
    """Every subset of a group has the group's loss, one line is written twice and one run is numbered above 900."""
    r = np.round(mixtures_of(26, 5, strength=2), 5)
    r[:, -1] = np.round(1 - r[:, :-1].sum(1), 5)
    lines = [
        f"/ckpts/70M_{number}-{'-'.join(map(str, shares))}/{step}/\t/data/pile.valid.{subset}.bin\t{float(loss)!r}"
        for number, shares in enumerate(r.tolist())
        for step in (9_000, 30_000)
        for loss, part in zip(law(np.array(shares)), SUBSETS.values(), strict=True)
        for subset in part
    ]
    lines += [lines[0], lines[-1].replace("70M_25-", "70M_901-")]
    file = tmp_path / "70M.txt"
    file.write_text("\n".join(lines) + "\n")
    table = read_runs(file)
    assert len(table) == 26 and set(table.steps.tolist()) == {30_000}
    fitted = MixingLaws().fit(table, dict(zip(NAMES, GROUPS, strict=True)))
    order = [NAMES.index(name) for name in fitted.targets]
    assert fitted.c == pytest.approx(FLOORS[order], abs=2e-3)
    assert fitted.huber.max() < 1e-12
