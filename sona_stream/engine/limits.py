"""Which configured bound is reached first, and with how many users."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ..config.settings import SonaSettings
from .capacity import FIXED, MB, Load, Row, episode_record

__all__ = ["Limit", "limits_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """A configured bound."""

    setting: str
    limit: float
    """bytes, or things where `unit` says so"""
    a_user: float
    """what one user takes of it"""
    then: str
    """what happens when it is reached"""
    unit: str = "bytes"
    once: float = 0.0
    """taken before the first user comes"""

    @property
    def users(self) -> int | None:
        """So many fit; None: any number."""
        return None if self.a_user <= 0 else max(0, int((self.limit - self.once) // self.a_user))


def limits_of(load: Load, settings: SonaSettings, rows: Sequence[Row], bounds: Mapping[str, int]) -> list[Limit]:
    """Every bound, the one reached first at the front. ``bounds``: those of the host, setting -> bytes."""
    learner, memory = settings.learner, settings.memory
    back = "what was used least recently leaves memory, and is read from the store when it is used"
    useful = "what is worth least is forgotten"
    known = {
        "sona.learner.adapter_mb": (learner.adapter_mb * MB, back),
        "sona.learner.replay_mb": (learner.replay_mb * MB, back),
        "sona.memory.mb": (memory.mb * MB, useful),
        "sona.memory.volatile_mb": (memory.volatile_mb * MB, useful),
        FIXED: (64 * MB, back),
        **{name: (size, "what was used least recently leaves, and is put again when it is asked for") for name, size
           in bounds.items()},
    }  # fmt: skip
    found = []
    for setting, (limit, then) in known.items():
        own = [row for row in rows if row.setting == setting]
        if own:
            a_user, once = sum(row.size * row.each for row in own), sum(row.size * row.once for row in own)
            found.append(Limit(setting, limit, a_user, then, once=once))
    states = episode_record(load) * load.episodes / load.tenants
    each = load.episodes / load.tenants
    found += [
        Limit("sona.memory.episodes", memory.episodes, load.episodes, useful, "episodes"),
        Limit("sona.memory.tenant_episodes", memory.tenant_episodes, each, useful, "episodes"),
        Limit("sona.memory.tenant_mb", memory.tenant_mb * MB, states, useful),
    ]
    return sorted(found, key=lambda one: (one.users is None, one.users or 0))
