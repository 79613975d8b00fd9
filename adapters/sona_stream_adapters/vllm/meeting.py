"""Which model answers now: the same host over its restarts, another one for another model."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .host import VllmHost
from .link import Link

__all__ = ["Meeting"]

_log = logging.getLogger(__name__)

_TOLD = 4096


class Meeting:
    """What the plug-in tells of itself, over time."""

    def __init__(self, name: str, link: Link, *, fetch_hidden: bool) -> None:
        self._name, self._link, self._fetch_hidden = name, link, fetch_hidden
        self.problem = ""
        """Why the hidden states are out of reach though the model answers."""
        self._host: VllmHost | None = None
        self._unserved: dict[str, str] = {}
        self._told: OrderedDict[str, str] = OrderedDict()

    @property
    def host(self) -> VllmHost | None:
        """None until the plug-in has told of itself, and while it is not there or its hook is off."""
        return None if self.problem else self._host

    @property
    def known(self) -> bool:
        """Whether the plug-in was ever there."""
        return self._host is not None

    def meet(self, info: Any) -> None:
        """The plug-in's answer to ``info``. Raises HostError when a part is missing."""
        problem = _problem_of(info)
        self._hear(info.get("unserved") if isinstance(info, Mapping) else None)
        self.note(f"{self._name}: {problem}" if problem else "")
        if not problem:
            self._meet_model(info)

    def note(self, problem: str) -> None:
        """What keeps the hidden states out of reach; empty when nothing does."""
        if problem and problem != self.problem:
            _log.warning("its hidden states are out of reach: %s", problem)
        self.problem = problem

    def take_unserved(self) -> dict[str, str]:
        """See `AnswerAuditor`."""
        taken, self._unserved = self._unserved, {}
        return taken

    def told(self, rid: str) -> str:
        """Why that answer was not served as it was bound; empty while nothing is known against it."""
        return self._told.get(rid, "")

    def _hear(self, unserved: Any) -> None:
        for rid, reason in unserved.items() if isinstance(unserved, Mapping) else ():
            if rid not in self._told:
                self._told[rid] = self._unserved[rid] = str(reason)
        while len(self._told) > _TOLD:
            self._told.popitem(last=False)

    def _meet_model(self, info: Mapping[str, Any]) -> None:
        known = self._host
        if known is not None and known.fingerprint == info.get("fingerprint"):
            if known.instance != info.get("instance"):
                _log.info("%s: it was started again; it is given its adapters", self._name)
                known.restarted(str(info.get("instance")))
            return
        host = VllmHost(self._name, self._link, info, fetch_hidden=self._fetch_hidden)
        if known is not None:
            reason = f"{self._name}: another model answers now: {host.fingerprint}, not {known.fingerprint}"
            _log.warning("%s", reason)
            known.retire(reason)
        self._host = host


def _problem_of(info: Any) -> str:
    if not isinstance(info, Mapping):
        return "the plug-in's answer cannot be read"
    if info.get("disabled"):
        return f"the hook has switched itself off: {info['disabled']}"
    if info.get("ok", True):
        return ""
    return "; ".join(str(one) for one in info.get("problems") or ()) or str(
        info.get("error") or "the hook is not there"
    )
