"""Versions that only a share of the requests gets: canaries, each on its host under a name of its own."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping

from ...errors import HostAway, HostError
from ...events import AdapterRef, Request
from ...lora import AdapterRecord
from .line import Line
from .turns import TakingTurns
from .watches import in_share

__all__ = ["Trials"]

_log = logging.getLogger(__name__)


class Trials:
    """Of all lines. A line has one canary at most; the newest takes the place of the pending one."""

    def __init__(self, hosts: Mapping[str, TakingTurns], pinned: Container[str], share: float) -> None:
        """``pinned``: names that stay on their host for whoever asked for them."""
        self._hosts, self._pinned, self.share = hosts, pinned, share

    def drawn(self, line: Line, request: Request) -> AdapterRef | None:
        """The line's canary, if this request is of its share."""
        if line.candidate is None or not in_share(request, _salt(line), self.share):
            return None
        return AdapterRef(key=str(line.key), version=line.candidate.version, pinned=True)

    async def begin(self, line: Line, record: AdapterRecord) -> None:
        """What is served stays. Raises HostError."""
        await self._hosts[line.key.model].put_adapter(_own_name(record), record.version, record.weights)
        await self.end(line)
        line.candidate = record

    async def end(self, line: Line) -> None:
        """A request may have been given the canary a moment ago: it leaves the host only after the next one
        has come, and stays there for whoever pinned it.
        """
        if line.candidate is None:
            return
        gone, line.outgoing, line.candidate = line.outgoing, line.candidate, None
        if gone is None or _own_name(gone) in self._pinned:
            return
        try:
            await self._hosts[line.key.model].drop_adapter(_own_name(gone))
        except (HostError, HostAway) as error:  # it takes room there, and no request gets it
            _log.warning("adapter %s stays on its host: %s", _own_name(gone), error)


def _own_name(record: AdapterRecord) -> str:
    """What a host serves exactly this version under, as a pinned one."""
    return f"{record.key}@{record.version}"


def _salt(line: Line) -> str:
    """Of the draw for a canary's share: another one for each version that is to be replaced."""
    return f"{line.key}@{0 if line.served is None else line.served.version}"
