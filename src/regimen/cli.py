"""The command line: `regimen train | prepare | check | score | fit | report | export | store`.

Only this module and what it needs to answer `--help` is imported at the start: torch, Lightning and the rest come in
when a command needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from regimen import __version__
from regimen.core.errors import ConfigError, RegimenError, closest
from regimen.core.settings import conf_dir

USAGE = f"""regimen {__version__}: train language models under data methods, and compare the methods fairly

  regimen train [key=value ...]            train one run; -m for a grid, --help for every group and setting
  regimen train resume=outputs/RUN         go on exactly where a run stopped
  regimen prepare [dataset=... ...]        prepare the data that `train` with the same arguments would use
  regimen check [key=value ...]            compose, build and validate; print the plan and its cost; train nothing
  regimen score [method=... ...]           scores of every row by a selector or a signal, as Parquet; train nothing
  regimen report runs=FOLDER [open=true]   compare finished runs: report.html, report.md, report.csv
  regimen fit law=LAW mixtures=CSV losses=CSV run_dir=DIR   predict losses from mixtures, and propose a mixture
  regimen export run=FOLDER to=DIR         Hugging Face model and tokenizer, chosen ids, mixture
  regimen store [remove=KEY]               what finished stages left: why it is kept, how large; remove it

Examples
  regimen train method=odm model=tiny dataset=local seed=3
  regimen train method=[folding,loss_weighting] budget.steps=200 strategies.folding.folds=5
  regimen train -m method=natural,uniform,odm,loss_selection seed=1,2,3
  regimen train -m seed=1,2,3 hydra/launcher=slurm_1gpu wait=false    send a grid to SLURM, and return
  regimen train method=regmix stages=only proxy.runs=64    train what the method needs first, and stop
  regimen prepare dataset=jsonl dataset.path=corpus/

Tab completion: eval "$(regimen -sc install=bash)"
"""

REPORT = {
    "runs": "a run, a sweep folder, or several separated by commas",
    "out": "where the report goes; default: the folder of the runs",
    "baseline": "the method that others are compared with; default: natural",
    "metric": "default: macro/bits_per_byte",
    "open": "true: open it in the browser",
}
EXPORT = {
    "run": "a finished run's folder",
    "to": "a new folder for the model, tokenizer, ids and mixture",
    "merge": "default: true; false writes the adapters of a run with model.lora alone",
}
STORE = {
    "remove": "keys separated by commas, or unused, unfinished, all",
    "at": "the store; default: $REGIMEN_HOME/store, or ~/.cache/regimen/store",
}
INTERRUPTED = 130  # what shells give for Ctrl-C


def main() -> int:
    """Run the command in sys.argv; returns the exit status."""
    try:
        return _dispatch(sys.argv[1:])
    except RegimenError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # e.g. `regimen --help | head`
        sys.stderr.close()
    return 1


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-sc", "--shell-completion", "--shell_completion"):
        return _complete()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 1
    if arguments[0] in ("-V", "--version", "version"):
        print(__version__)
        return 0
    return _command(arguments[0])(arguments[1:])


def _command(name: str) -> Callable[[list[str]], int]:
    commands = _commands()
    if name not in commands:
        raise ConfigError(
            f"unknown command {name!r}{closest(name, commands)}", allowed=", ".join(commands), do="regimen --help"
        )
    return commands[name]


def _commands() -> dict[str, Callable[[list[str]], int]]:
    return {
        "train": lambda arguments: _composed("train", arguments),
        "prepare": lambda arguments: _composed("prepare", arguments),
        "check": lambda arguments: _composed("check", arguments),
        "score": lambda arguments: _composed("score", arguments),
        "report": _report,
        "export": _export,
        "fit": _fit,
        "store": _store,
    }


# ---- commands that Hydra composes ------------------------------------------------------------------------------


def _composed(command: str, arguments: list[str]) -> int:
    """Compose the configuration and run a command on it, once or for each job of a multirun."""
    import hydra
    from omegaconf import DictConfig

    from regimen.runs import jobs, launchers, parting, ranks

    jobs.refuse_unknown_choice(arguments)
    launchers.refuse_missing_plugin(arguments)
    arguments = launchers.share_gpus(launchers.take_wait(arguments))
    given, launcher = list(sys.argv), os.getpid()
    failed: list[DictConfig] = []
    ranks.begin_launch()

    def task(config: DictConfig) -> None:
        sys.argv[:] = given  # Lightning starts other ranks with it, so it must be whole again while a job runs
        try:
            jobs.run(command, config, at_launcher=os.getpid() == launcher)
        except jobs.Refused as error:
            if os.getpid() != launcher:  # a job on a cluster: its status must tell
                raise
            if jobs.speaks():
                print(error, file=sys.stderr)
            failed.append(config)

    sys.argv[:] = [given[0], *jobs.with_sweep_folder(command, arguments)]
    try:
        # Hydra resolves a relative config_path against the caller's file, and takes an absolute one as it is.
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)()
    finally:
        sys.argv[:] = given
        parting.clear()
    return 1 if failed else 0


def _complete() -> int:
    """Answer the shell: commands first, then what they take; Hydra completes overrides and prints its scripts."""
    words = os.environ.get("COMP_LINE", "").split()
    if os.environ.get("COMP_LINE", "").endswith(" "):
        words.append("")
    command = words[1] if len(words) > 2 else None
    from regimen.runs.fitting.command import FIT

    known = {"report": REPORT, "export": EXPORT, "fit": FIT, "store": STORE}
    if "query=bash" in sys.argv and (command is None or command in known):
        choices = [f"{key}=" for key in known[command]] if command else list(_commands())
        typed = words[-1] if len(words) > 1 else ""
        print("\n".join(choice for choice in choices if choice.startswith(typed)))
        return 0
    if command is not None:
        os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    import hydra

    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(lambda config: None)()
    return 0


# ---- commands with a few settings of their own -----------------------------------------------------------------


def _settings(command: str, arguments: list[str], known: dict[str, str], *, also: str = "=") -> dict[str, str]:
    """Parse key=value arguments. known: what each key means, for errors and --help. also: keys that begin so."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"regimen {command} " + " ".join(f"{key}=..." for key in known))
        print("\n".join(f"  {key:<13} {meaning}" for key, meaning in known.items()))
        raise SystemExit(0)
    settings = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or (key not in known and not key.startswith(also)):
            raise ConfigError(
                f"regimen {command} does not know {argument!r}{closest(key, known)}",
                allowed=", ".join(f"{key}=..." for key in known),
            )
        settings[key] = value
    return settings


def _report(arguments: list[str]) -> int:
    settings = _settings("report", arguments, REPORT)
    if "runs" not in settings:
        raise ConfigError("regimen report needs runs to compare", do="regimen report runs=outputs/SWEEP")
    from regimen import reports

    extra = {key: settings[key] for key in ("baseline", "metric") if key in settings}
    out = Path(settings["out"]) if "out" in settings else None
    page = reports.build([Path(part) for part in settings["runs"].split(",")], out=out, **extra)
    print(page)
    if settings.get("open", "false").lower() in ("true", "1", "yes"):
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _export(arguments: list[str]) -> int:
    settings = _settings("export", arguments, EXPORT)
    missing = [key for key in ("run", "to") if key not in settings]
    if missing:
        raise ConfigError(f"regimen export needs {' and '.join(missing)}", do="regimen export run=outputs/RUN to=DIR")
    from regimen.runs.export import export

    merge = settings.get("merge", "true").lower()
    if merge not in ("true", "false"):
        raise ConfigError(
            "merge says whether adapters are put into the model", got=f"merge={merge}", allowed="true, false"
        )
    print(export(Path(settings["run"]), Path(settings["to"]), merge=merge == "true"))
    return 0


def _store(arguments: list[str]) -> int:
    settings = _settings("store", arguments, STORE)
    from regimen.runs import store_command

    return store_command.main(settings)


def _fit(arguments: list[str]) -> int:
    from regimen.runs.fitting import command

    return command.main(_settings("fit", arguments, command.FIT, also="law."))
