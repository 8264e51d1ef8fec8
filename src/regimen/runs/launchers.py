"""Hydra launchers that are plugins of their own: whether they are installed, asked before Hydra composes anything."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from regimen.core.errors import ConfigError

# How a launcher's name begins, its package, and what installs it.
_PLUGINS = (
    ("slurm_", "hydra_submitit_launcher", 'pip install "regimen[slurm]"'),
    ("submitit_", "hydra_submitit_launcher", 'pip install "regimen[slurm]"'),
    ("joblib", "hydra_joblib_launcher", 'pip install "regimen[sweep]"'),
    ("ray", "hydra_ray_launcher", "pip install hydra-ray-launcher, in an environment of its own: it pins an old ray"),
)


def refuse_missing_plugin(arguments: Iterable[str]) -> None:
    """Raises ConfigError for hydra/launcher=NAME whose plugin is not installed, with what to type."""
    for argument in arguments:
        group, _, name = argument.lstrip("+").partition("=")
        if group != "hydra/launcher":
            continue
        for start, package, install in _PLUGINS:
            if name.startswith(start) and not _installed(package):
                raise ConfigError(f"the plugin of the launcher {name} is not installed", got=argument, do=install)


def _installed(package: str) -> bool:
    try:
        return find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin of Hydra at all
        return False
