"""What benchmarks that train a grid of runs share: a run of the command line, and the text of a paired difference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from regimen.evaluation.statistics import paired_interval


def regimen(*arguments: str) -> int:
    """The exit status of `regimen` with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "regimen", *arguments], env=environment, check=False).returncode


def against(scores: Sequence[float], baseline: Sequence[float]) -> str:
    """The mean difference of paired scores, its interval, and a star where that leaves out 0."""
    pair = paired_interval(scores, baseline)
    return f"{pair.mean:+.4f} ({pair.low:+.4f} to {pair.high:+.4f}){' *' if pair.excludes_zero else ''}"
