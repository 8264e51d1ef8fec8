"""Between Hydra and the commands: one composed configuration in, one command run. Imports nothing heavy at the top."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from regimen.core.errors import ConfigError, RegimenError, closest
from regimen.core.settings import LAYOUT, conf_dir, is_under
from regimen.runs import launchers, parting, ranks, validate
from regimen.runs.compose import plain
from regimen.runs.identity import run_folder, run_name, sweep_name
from regimen.runs.locks import Busy
from regimen.runs.preempted import Preempted
from regimen.runs.ranks import global_rank

_SWEEP = "REGIMEN_SWEEP"


class Refused(CompactHydraException):
    """A RegimenError on its way through Hydra, which prints this kind without a traceback and exits with 1."""


def with_sweep_folder(command: str, arguments: list[str]) -> list[str]:
    """The arguments with -m in front, which Hydra cannot find between overrides; notes the multirun's folder.

    The folder goes into the environment, where every job and every rank finds it. What is not training keeps Hydra's
    own files (multirun.yaml, a launcher's logs) out of the folders of runs.
    """
    # `stages` holds the method's stages, which an override of it as a whole would lose.
    arguments = ["only_stages=true" if a == "stages=only" else a for a in arguments]
    flags = [a for a in arguments if a in ("-m", "--multirun")]
    if not flags:
        return arguments
    rest = [a for a in arguments if a not in flags]
    overrides = [a for a in rest if "=" in a and not a.startswith(("-", "hydra"))]
    named = [a.partition("=")[2] for a in overrides if a.startswith("sweep=")]
    os.environ[_SWEEP] = named[-1] if named else sweep_name(overrides)
    place = [] if command == "train" else [f"hydra.sweep.dir=${{paths.outputs}}/.multirun/{os.environ[_SWEEP]}"]
    return [flags[0], *place, *rest]


def refuse_unknown_choice(arguments: list[str]) -> None:
    """Raises ConfigError for an option that a group of the configuration does not have, with the nearest that it has.

    Hydra says so too, in a line per option. Folders of the user's own may hold more options: then Hydra looks alone.
    """
    if any("config-dir" in a or "config_dir" in a or "searchpath" in a or a in ("-cd", "-cp") for a in arguments):
        return
    for argument in arguments:
        group, equals, value = argument.partition("=")
        folder = conf_dir() / group
        if not equals or not re.fullmatch(r"\w+", group) or not folder.is_dir():
            continue
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        for choice in re.findall(r"\w+", value) if re.fullmatch(r"[\w,\[\] ]+", value) else []:
            if choice not in (*known, "null"):
                raise ConfigError(f"no such {group}{closest(choice, known)}", got=argument, allowed=", ".join(known))


def run(command: str, config: DictConfig, *, at_launcher: bool = True) -> None:
    """Run one job of `command`. Raises Refused for what the user can mend, Parted where the launch of its ranks ends.

    at_launcher: this process goes through all jobs of a multirun, and is not sent one alone.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where a user's own strategies are
    job = _job()
    try:
        settings, folder, sweep = _resolved(config)
        _begin(settings, at_launcher)
        job = _job(run_name(settings))
        validate.settings(settings)
        if not at_launcher and "SUBMITIT_EXECUTOR" not in os.environ:
            launchers.refuse_several_processes(settings["trainer"])
            launchers.take_gpu()
        if command != "prepare":
            validate.rows(settings)
            _refuse_dry_run(command, settings)
        _do(command, settings, folder, sweep)
    except parting.Over:  # rank 0 has nothing for this rank to do
        return
    except RegimenError as error:
        if isinstance(error, Busy) and "SUBMITIT_EXECUTOR" in os.environ:
            parting.say_over()
            print(f"left to the job that is at work on it: {job}{error}", file=sys.stderr)
            return
        told = f"error: {job}{error}"
        parting.leave(error, told)
        raise Refused(told) from None
    except Exception as error:  # Hydra would go on with the next job too
        parting.leave(error, traceback.format_exc())
        raise


def _do(command: str, settings: dict[str, Any], folder: Path, sweep: str | None) -> None:
    if command == "train":
        from regimen.runs.train import train

        try:
            train(settings, folder, sweep=sweep)
        except (Preempted, parting.Parted):
            raise
        except SystemExit:  # how Lightning ends a training that Ctrl-C stopped
            raise KeyboardInterrupt from None
    elif command == "score":
        from regimen.runs.score import score

        score(settings)
    elif command == "prepare":
        from regimen.runs.check import prepare

        prepare(settings)
    else:
        from regimen.runs.check import check

        check(settings, folder)


def _begin(settings: Mapping[str, Any], at_launcher: bool) -> None:
    """Name the job, for what its ranks tell each other."""
    hydra = HydraConfig.get()
    multirun = hydra.mode == RunMode.MULTIRUN
    number = int(hydra.job.num) if multirun else 0
    ranks.begin_job(number)
    parting.enter(Path(settings["paths"]["outputs"]), number, replayed=multirun and at_launcher)


def _refuse_dry_run(command: str, settings: dict[str, Any]) -> None:
    if settings["dry_run"]:
        raise ConfigError(
            f"a dry run is for preparing, and {command} would not be dry",
            got="dry_run=true",
            do="regimen prepare dry_run=true ... for the data, regimen check ... for the training",
        )


def speaks() -> bool:
    """Whether this process talks to the user: one rank does, even where all stop for the same reason."""
    return global_rank() == 0


def _job(name: str = "") -> str:
    """Which job of a multirun this is, for its error."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return ""
    return f"job {hydra.job.num}{name and ', '}{name}: "


def _resolved(config: DictConfig) -> tuple[dict[str, Any], Path, str | None]:
    """Plain settings, the run's folder, and the multirun it belongs to."""
    hydra = HydraConfig.get()
    sweep = config["sweep"]
    if sweep is None and hydra.mode == RunMode.MULTIRUN:
        sweep = os.environ.get(_SWEEP)
    if config["resume"] is not None:
        return _resumed(Path(config["resume"]).expanduser(), config, list(hydra.overrides.task))
    settings = plain(config)
    return settings, run_folder(settings, sweep=sweep), sweep


def _resumed(folder: Path, config: DictConfig, overrides: list[str]) -> tuple[dict[str, Any], Path, str | None]:
    """The settings of a run that exists; only what cannot change its result may be given anew."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            "there is no run to go on with",
            got=f"resume={folder}",
            allowed="a folder with config.yaml",
            do="ls outputs, or start the run: regimen train ...",
        )
    saved = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(saved, dict)
    new = OmegaConf.to_container(config, resolve=False)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key == "resume":
            continue
        if not _is_layout(key):
            raise ConfigError(
                "a resumed run keeps its own settings",
                got=override,
                allowed="logger, paths, trainer.devices, trainer.micro_batch_size, trainer.save_every_steps, ...",
                do="drop it, or start a new run",
            )
        _copy(key.partition("@")[0], new, saved)
    settings: dict[str, Any] = {str(k): v for k, v in saved.items()}
    settings |= {"run_dir": str(folder), "resume": None, "accept_other_version": config["accept_other_version"]}
    return settings, folder, None


def _is_layout(key: str) -> bool:
    return is_under(key, (*LAYOUT, "accept_other_version"))


def _copy(dotted: str, source: Any, target: Any) -> None:
    *path, last = dotted.split(".")
    for name in path:
        source, target = source[name], target.setdefault(name, {})
    target[last] = source[last]
