"""Compose a configuration from overrides, as the command line does, inside a job that has one already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from regimen.core.errors import ConfigError
from regimen.core.settings import conf_dir


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values. Raises ConfigError for a value that is missing or refers to nothing."""
    try:
        settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{error.full_key} must be given", got="nothing", do=f"type {error.full_key}=..., or choose another option"
        ) from None
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{error.full_key} cannot be resolved", got=str(error).splitlines()[0], do="look at its ${...}"
        ) from None
    assert isinstance(settings, dict)
    if settings["choices"]["method"] is None:  # Hydra knows no name for method=[a,b]
        settings["choices"]["method"] = list(settings["strategies"])
    return {str(key): value for key, value in settings.items()}


def compose_plain(overrides: Sequence[str], *, where: str) -> dict[str, Any]:
    """The settings that `regimen train OVERRIDES` would have. where: who asks, for the error."""
    with _hydra(), _own_hydra_config():
        try:
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(
                f"the overrides of {where} do not compose",
                got=" ".join(str(error).split())[:400],
                do=f"look at {where}.overrides: regimen train {' '.join(overrides)} --cfg job",
            ) from error
        HydraConfig.instance().set_config(config)
        return plain(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))


@contextmanager
def _hydra() -> Iterator[None]:
    """The loader of the job at hand with its search path, or one of our own."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@contextmanager
def _own_hydra_config() -> Iterator[None]:
    """Let `${hydra:...}` mean the configuration that is composed, and the job's own again afterwards."""
    instance = HydraConfig.instance()
    before = instance.cfg
    try:
        yield
    finally:
        instance.cfg = before
