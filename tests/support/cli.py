"""`regimen ...` in this process: the real command line, with its exit status and what it put on the screen."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from regimen import cli
from tests.support.runs import SMALL


@dataclass(frozen=True)
class Done:
    """What a command left on the screen."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class CommandLine:
    """Runs commands on a small corpus. home: holds pools and outputs."""

    corpus: Path
    home: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> Done:
        """Run `regimen` with these arguments."""
        before, sys.argv = sys.argv, ["regimen", *arguments]
        GlobalHydra.instance().clear()
        self.capsys.readouterr()
        try:
            status = cli.main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        finally:
            sys.argv = before
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
        seen = self.capsys.readouterr()
        return Done(status, seen.out, seen.err)

    def small(self, command: str, *overrides: str, flags: tuple[str, ...] = ()) -> Done:
        """Run a command with the settings of a small run."""
        return self(command, *flags, *SMALL, *self.places(), *overrides)

    def places(self) -> list[str]:
        """Where the corpus, the pools and the runs are."""
        return [f"dataset.path={self.corpus}", f"paths.pools={self.home}/pools", f"paths.outputs={self.home}/outputs"]

    def runs(self) -> set[Path]:
        """Everything that lies where runs and reports go, temporary files anywhere included."""
        outputs = self.home / "outputs"
        return {*outputs.glob("*"), *outputs.glob("*/*"), *self.home.rglob("*.tmp")}

    def refused(self, *overrides: str, command: str = "train") -> str:
        """The error of a command that must refuse: one screen, no traceback, status 1, nothing left behind."""
        return self.refused_as_it_is(command, *SMALL, *self.places(), *overrides)

    def refused_as_it_is(self, *arguments: str) -> str:
        """As `refused`, for a command with nothing added."""
        before = self.runs()
        done = self(*arguments)
        assert done.status == 1, (done.out, done.err)
        assert "Traceback" not in done.err
        assert len(done.err.splitlines()) < 40
        assert self.runs() == before
        return done.err


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process that must not inherit what this process set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REGIMEN_", "WANDB_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}
