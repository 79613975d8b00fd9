"""What a policy sees and says, and the policies there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from ..config.settings import RoutingSettings
from ..errors import ConfigError
from ..events import PatternType
from ..protocols import LearnedPattern
from .models import ModelCatalog

__all__ = ["Choice", "Policy", "PolicyFactory", "QueryView", "create_policy", "policies", "register"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QueryView:
    """One query, as far as routing knows it. ``patterns`` are the nearest ones, nearest first."""

    located: bool
    """False when there is no embedding to look with: no query, or the embedder failed."""
    patterns: Sequence[LearnedPattern] = ()
    query_type: PatternType = "General"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """``reason`` is machine-readable; ``propensity`` the probability with which this model was chosen."""

    model: str
    reason: str
    propensity: float = 1.0


class Policy(Protocol):
    """Chooses among the models when the client asked for `sona/auto`."""

    def choose(self, view: QueryView, /) -> Choice: ...


PolicyFactory = Callable[[RoutingSettings, ModelCatalog], Policy]

_FACTORIES: dict[str, PolicyFactory] = {}


def register(name: str) -> Callable[[PolicyFactory], PolicyFactory]:
    """Make a policy known to `sona.routing.policy`. Raises ValueError when the name is taken."""

    def add(factory: PolicyFactory) -> PolicyFactory:
        if name in _FACTORIES:
            raise ValueError(f"there is a policy {name!r} already")
        _FACTORIES[name] = factory
        return factory

    return add


def policies() -> tuple[str, ...]:
    """Known names, sorted."""
    return tuple(sorted(_FACTORIES))


def create_policy(settings: RoutingSettings, models: ModelCatalog) -> Policy:
    """The policy that `sona.routing.policy` names. Raises ConfigError listing the known ones."""
    factory = _FACTORIES.get(settings.policy)
    if factory is None:
        raise ConfigError(
            f"sona.routing.policy: there is no policy {settings.policy!r} (known: {', '.join(policies())})"
        )
    return factory(settings, models)
