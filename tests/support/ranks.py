"""Two gloo processes as torchrun starts them, for scripts of tests that train several runs in each."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def on_two_ranks(
    script: str, arguments: Sequence[str], *, name: str, status: int = 0, timeout: float = 240
) -> list[str]:
    """Run Python source on both ranks with `arguments`; name: of the launch. Both must end with `status`.

    Returns what each wrote to its errors.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": name, "GROUP_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [status, status], said
    return said
