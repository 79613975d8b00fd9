"""Which backends answer: asked now and then, and known at any moment without asking."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from ..errors import HostAway, ModelUnavailable, NotReady, SonaError
from ..protocols import AnswerAuditor, Backend, HookReporter, HostReporter

__all__ = ["Watch"]

_log = logging.getLogger(__name__)

_LOADING_POLL_S = 0.2


class _Watched:
    """One deployment and what was wrong with it when it was last asked; None: it answers."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self.problem: SonaError | None = NotReady(f"{name} was not asked yet")

    async def probe(self) -> None:
        before, self.problem = self.problem, await self._ask()
        if self.problem is None:
            if before is not None:
                _log.info("%s: answers", self.name)
        elif str(self.problem) != str(before):
            # Of its loading, and of why that failed, a backend in this process speaks itself.
            in_process = isinstance(self.problem, NotReady | ModelUnavailable)
            _log.log(logging.DEBUG if in_process else logging.WARNING, "%s", self.problem)

    async def _ask(self) -> SonaError | None:
        try:
            await self.backend.probe()
        except SonaError as error:
            return error
        except Exception as error:  # backends come through a plug-in door: one of them must not end the watch
            _log.exception("%s cannot be asked", self.name)
            return SonaError(f"{self.name} cannot be asked: {error}")
        return None


def _loads(one: _Watched) -> bool:
    """Whether it is on its way in this process. An upstream that answers with an error does not load, nor does one
    whose hidden states are out of reach.
    """
    return isinstance(one.problem, NotReady) and not isinstance(one.problem, HostAway)


def _talks(one: _Watched) -> bool:
    """Whether it answers requests: one whose hidden states alone are out of reach does."""
    return one.problem is None or isinstance(one.problem, HostAway)


def _is_lost(one: _Watched) -> bool:
    """Whether it will not answer as long as this program runs."""
    return isinstance(one.problem, ModelUnavailable)


class Watch:
    """Over all deployments of all models."""

    def __init__(self, backends: Mapping[str, Sequence[Backend]], *, interval: float) -> None:
        self._all = [_Watched(name, backend) for name, group in backends.items() for backend in group]
        self._interval = interval

    async def run(self) -> None:
        """Until cancelled. Each at its own pace: one that loads, or takes long to say anything, is no reason to ask
        the others more often or later.
        """
        async with anyio.create_task_group() as tasks:
            for one in self._all:
                tasks.start_soon(self._follow, one)

    async def _follow(self, one: _Watched) -> None:
        while True:
            await one.probe()
            await anyio.sleep(_LOADING_POLL_S if _loads(one) else self._interval)

    def check(self) -> None:
        """Returns when some backend answers and none is still loading. Raises NotReady while that may yet come,
        ModelUnavailable when it cannot.
        """
        for one in filter(_loads, self._all):
            raise NotReady(str(one.problem))
        if any(map(_talks, self._all)):
            return
        reasons = "; ".join(str(one.problem) for one in self._all)
        raise (
            ModelUnavailable(reasons)
            if all(map(_is_lost, self._all))
            else NotReady(f"no backend answers: {reasons}")
        )

    def answers(self, name: str) -> bool:
        """Whether a deployment of this model did when it was last asked."""
        return any(one.problem is None for one in self._all if one.name == name)

    def adaptable(self, name: str) -> list[tuple[Backend, bool]]:
        """Its deployments that can have a host, and whether they answered when they were last asked."""
        return [(one.backend, one.problem is None) for one in self._adaptable(name)]

    def without_host(self, name: str) -> str:
        """Why there is no host of this model though everything that could have one was asked: for good, or until
        another probe says otherwise. Empty while one may be about to come.
        """
        reasons = []
        for one in self._adaptable(name):
            told = one.backend.host_problem if isinstance(one.backend, HostReporter) else ""
            if _is_lost(one):
                told = str(one.problem)
            if not told:
                return ""
            reasons.append(told)
        return "; ".join(reasons)

    def _adaptable(self, name: str) -> list[_Watched]:
        return [one for one in self._all if one.name == name and one.backend.adaptable]

    def unserved(self) -> list[tuple[str, str]]:
        """(request id, why its answer was not served as its head said), each told once."""
        told = [one.backend.take_unserved() for one in self._all if isinstance(one.backend, AnswerAuditor)]
        return [pair for each in told for pair in each.items()]

    def hook_stats(self) -> list[tuple[tuple[str, str], Mapping[str, float | str]]]:
        """((model, place of the deployment), what its hook counts), for those that can have one."""
        told, places = [], Counter[str]()
        for one in self._all:
            places[one.name] += 1
            if isinstance(one.backend, HookReporter):
                stats = one.backend.hook_stats() if one.problem is None else {}
                told.append(((one.name, str(places[one.name])), stats))
        return told

    def view(self) -> dict[str, Any]:
        """Name -> "ready" or what is wrong, per deployment."""
        shown: dict[str, list[str]] = {}
        for one in self._all:
            shown.setdefault(one.name, []).append("ready" if one.problem is None else str(one.problem))
        return shown
