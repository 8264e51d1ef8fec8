"""How the ranks of one launch know each other's decisions from those of another launch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OTHERS = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID")
ASK = "from regimen.runs.ranks import next_token; import os; print(next_token(), os.environ['REGIMEN_ATTEMPT'])"


def asked(**extra: str) -> tuple[str, str]:
    """The token of a new process, and what a process that it starts would inherit."""
    plain = {key: value for key, value in os.environ.items() if key not in OTHERS}
    done = subprocess.run([sys.executable, "-c", ASK], env=plain | extra, capture_output=True, text=True, check=True)
    token, left = done.stdout.split()
    return token, left


def test_a_launch_never_takes_the_token_of_another() -> None:
    """A rank that did would find the decision of the launch before in the folder, and act on it."""
    token, left = asked(REGIMEN_ATTEMPT="earlier")
    assert token == f"{left}.0.0" and left != "earlier"
    assert asked(REGIMEN_ATTEMPT="earlier")[0] != token


@pytest.mark.parametrize("rank", ["1", "2"])
def test_other_ranks_take_the_token_of_the_process_that_started_them(rank: str) -> None:
    assert asked(REGIMEN_ATTEMPT="given", LOCAL_RANK=rank) == ("given.0.0", "given")
