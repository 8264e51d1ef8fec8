"""Which rank this process is, before any trainer exists. Imports nothing heavy: the first errors need it."""

from __future__ import annotations

import os


def global_rank() -> int:
    """The rank of this process before any trainer exists, from what launchers set."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name == "SLURM_PROCID" and int(os.environ.get("SLURM_NTASKS", "1")) == 1:
            continue  # an interactive shell on a cluster
        if name in os.environ:
            return int(os.environ[name])
    return 0
