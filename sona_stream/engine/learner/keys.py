"""Which adapter a judgement teaches and a request uses: the key chain `*` -> pattern type -> pattern."""

from __future__ import annotations

import dataclasses
from urllib.parse import quote, unquote

from ...events import RouteDecision

__all__ = ["EVERYTHING", "AdapterKey", "chain", "is_pattern"]

EVERYTHING = "*"
"""The group of the coarsest level: every request of one tenant to one model."""

_PATTERN = "pattern:"
_SAFE = "*:._-+ "  # in tenant and group; `/` and `@` separate the parts of a key and its version


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class AdapterKey:
    """``model/tenant/group``. Tenant and group are percent-quoted; a model's own slashes (``org/name``) stay, since
    the last two parts hold none.
    """

    model: str
    tenant: str
    group: str = EVERYTHING

    def __str__(self) -> str:
        return f"{self.model}/{quote(self.tenant, safe=_SAFE)}/{quote(self.group, safe=_SAFE)}"

    @classmethod
    def parse(cls, text: str) -> AdapterKey:
        """Inverse of ``str``. Raises ValueError when there are not three parts."""
        parts = text.rsplit("/", 2)
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"adapter key {text!r}: expected model/tenant/group")
        return cls(parts[0], unquote(parts[1]), unquote(parts[2]))

    def at(self, group: str) -> AdapterKey:
        """The same model and tenant, another level."""
        return AdapterKey(self.model, self.tenant, group)


def chain(model: str, tenant: str, route: RouteDecision | None) -> tuple[AdapterKey, ...]:
    """From the coarsest to the finest level. Pattern types are names of a closed set; a pattern's id gets a
    prefix, so that no pattern can take a type's place.
    """
    root = AdapterKey(model, tenant)
    if route is None:
        return (root,)
    levels = (root, root.at(route.pattern_type))
    return levels if route.pattern is None else (*levels, root.at(_PATTERN + route.pattern))


def is_pattern(group: str) -> bool:
    """Whether this level is a single pattern: there may be thousands."""
    return group.startswith(_PATTERN)
