"""From `strategies.*` to strategies with their triggers, one owner per kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from regimen.core.errors import ConfigError, RegimenError, closest
from regimen.core.signal import Signal
from regimen.core.strategy import KINDS, Kind, Mixer, Orderer, Strategy, wrong_scope
from regimen.core.trigger import Trigger
from regimen.mixing.natural import Natural


@dataclass(frozen=True)
class Placed:
    """A strategy with its name and trigger; a weighter has none, it acts in every step."""

    name: str
    strategy: Strategy
    trigger: Trigger | None

    @property
    def kind(self) -> Kind:
        """Selector, mixer, orderer or weighter."""
        return self.strategy.kind


def make_strategies(settings: Mapping[str, Mapping[str, Any]]) -> list[Placed]:
    """The strategies of a run in the fixed sequence keep, mix, order, weight.

    Raises ConfigError where two strategies have the same kind, a trigger is missing, or an order contradicts a mixer.
    """
    placed = [_place(name, fields) for name, fields in settings.items()]
    for kind in KINDS:
        owners = [p.name for p in placed if p.kind == kind]
        if len(owners) > 1:
            raise ConfigError(
                f"a run has one {kind}",
                got=" and ".join(owners),
                do=f"drop one of them: method=[...] without {owners[-1]}, or add ~strategies.{owners[-1]}",
            )
    _refuse_contradiction(placed)
    return sorted(placed, key=lambda p: KINDS.index(p.kind))


def _place(name: str, fields: Mapping[str, Any]) -> Placed:
    if not isinstance(fields, Mapping):
        raise ConfigError(f"strategies.{name} has no settings", got=fields, do=f"drop it with ~strategies.{name}")
    fields = dict(fields)
    when = fields.pop("when", None)
    strategy = instantiate(f"strategies.{name}", fields)
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"strategies.{name} is not a strategy",
            got=f"{fields.get('_target_')}",
            allowed="a subclass of Selector, Mixer, Orderer or Weighter in regimen.core.strategy",
        )
    _refuse_no_signal(name, strategy)
    if strategy.kind == "weighter":
        if when is not None:
            raise ConfigError(f"{name} is a weighter and acts in every step", do=f"drop strategies.{name}.when")
        return Placed(name, strategy, None)
    if when is None:
        raise ConfigError(
            f"strategies.{name} does not say when it decides",
            do="add `when: {_target_: regimen.core.trigger.Once}`, Every (steps, start) or AtFractions (fractions)",
        )
    trigger = instantiate(f"strategies.{name}.when", when)
    if not isinstance(trigger, Trigger):
        raise ConfigError(f"strategies.{name}.when is not a trigger", got=when, allowed="Once, Every, AtFractions")
    return Placed(name, strategy, trigger)


def instantiate(where: str, fields: Mapping[str, Any]) -> Any:
    """The object that `_target_` and its settings describe. Raises ConfigError for a setting that it does not have."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if "_target_" not in fields:
        raise ConfigError(f"{where} names no class", got=dict(fields), do="add `_target_: package.module.Class`")
    _refuse_unknown(where, fields)
    try:
        return instantiate(dict(fields), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, RegimenError):
            raise error.__cause__ from None
        got = " ".join(str(error).split())[:300]
        raise ConfigError(f"{where} cannot be built", got=got, do=f"look at {where}.*") from error


def _refuse_unknown(where: str, fields: Mapping[str, Any]) -> None:
    """A setting that the class does not have, with the ones it has."""
    from hydra.utils import get_object

    try:
        kind = get_object(fields["_target_"])
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{where}._target_ cannot be imported",
            got=f"{fields['_target_']}: {str(error).splitlines()[-1]}",
            do="look at its spelling; a module of your own must lie in the folder where you start, or on PYTHONPATH",
        ) from error
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return
    known = [field.name for field in dataclass_fields(kind)]
    for name, value in fields.items():
        if name not in known and not (name.startswith("_") and name.endswith("_")):
            raise ConfigError(
                f"unknown setting {where}.{name}{closest(name, known)}",
                got=f"{where}.{name}={value}",
                allowed=", ".join(known) or "none",
                do=f"correct it, or drop +{where}.{name}",
            )


def _refuse_no_signal(name: str, strategy: Strategy) -> None:
    for signal in (*strategy.needs(), *strategy.watches()):
        if not isinstance(signal, Signal):
            raise ConfigError(
                f"strategies.{name} needs a signal",
                got=signal,
                allowed="a signal of conf/signal, or a mapping with the _target_ of one",
                do=f"e.g. 'strategies.{name}.by=${{signal.loss}}'",
            )


def _refuse_contradiction(placed: list[Placed]) -> None:
    mixed = any(isinstance(p.strategy, Mixer) and not isinstance(p.strategy, Natural) for p in placed)
    for p in placed:
        within = p.strategy.within if isinstance(p.strategy, Orderer) else None
        if within == ("pool" if mixed else "domain"):
            raise wrong_scope(p.name, within)
