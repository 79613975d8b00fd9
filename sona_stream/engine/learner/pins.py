"""Old versions that are held on the hosts because requests ask for them, each under ``key@version``."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from ...errors import HostAway, HostError, NotFound, NotPermitted
from ...events import AdapterRef
from ...lora import AdapterRecord
from .keys import AdapterKey
from .turns import TakingTurns

__all__ = ["Pins"]

_log = logging.getLogger(__name__)
_PINNED = 16


class Pins:
    """Those asked for last. Belongs to one event loop."""

    def __init__(
        self,
        hosts: Mapping[str, TakingTurns],
        kept: Callable[[AdapterKey, int], Awaitable[AdapterRecord]],
    ) -> None:
        """``kept``: a version that may be served; raises NotFound."""
        self._hosts, self._kept = hosts, kept
        self._held: OrderedDict[str, TakingTurns] = OrderedDict()

    def __contains__(self, name: object) -> bool:
        return name in self._held

    async def pin(self, ref: AdapterRef, *, model: str | None = None, tenant: str | None = None) -> AdapterRef:
        """Make exactly this version servable, under ``key@version``. A given model or tenant must be the key's.
        Raises NotFound, NotPermitted.
        """
        try:
            key = AdapterKey.parse(ref.key)
        except ValueError as error:
            raise NotFound(str(error)) from error
        if tenant is not None and key.tenant != tenant:
            raise NotPermitted(f"adapter {ref} belongs to another tenant")
        if model is not None and key.model != model:
            raise NotFound(f"adapter {ref} is not one of model {model!r}")
        name = str(ref)
        if name not in self._held or not self._hosts[key.model].holds_adapter(name):
            record = await self._kept(key, ref.version)
            await self._hosts[key.model].put_adapter(name, ref.version, record.weights)
        self._held[name] = self._hosts[key.model]
        self._held.move_to_end(name)
        while len(self._held) > _PINNED:
            oldest, host = self._held.popitem(last=False)
            await host.drop_adapter(oldest)
        return dataclasses.replace(ref, pinned=True)

    def forget(self, model: str) -> None:
        """Its host is another one now."""
        for name in [name for name in self._held if AdapterKey.parse(name.rpartition("@")[0]).model == model]:
            del self._held[name]

    async def release(self, record: AdapterRecord) -> None:
        """Nobody gets it any more."""
        name = f"{record.key}@{record.version}"
        host = self._held.pop(name, None)
        try:
            if host is not None:
                await host.drop_adapter(name)
        except (HostError, HostAway) as error:  # it takes room there, and no request gets it
            _log.warning("adapter %s stays on its host: %s", name, error)
