"""What benchmarks over several seeds share: a run of the command line, a paired difference and a spread as text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from statistics import mean

from regimen.evaluation.statistics import paired_interval


def regimen(*arguments: str) -> int:
    """The exit status of `regimen` with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "regimen", *arguments], env=environment, check=False).returncode


def against(scores: Sequence[float], baseline: Sequence[float]) -> str:
    """The mean difference of paired scores, its interval, and a star where that leaves out 0."""
    pair = paired_interval(scores, baseline)
    return f"{pair.mean:+.4f} ({pair.low:+.4f} to {pair.high:+.4f}){' *' if pair.excludes_zero else ''}"


def spread(values: Sequence[float]) -> str:
    """Mean, least and greatest over the seeds."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
