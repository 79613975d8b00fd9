"""Which hidden states are in reach: hosts come late, go, come back, and come back as another model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import anyio

from ..engine.learner import Learner
from ..errors import HostAway, NotReady, SonaError
from ..protocols import Backend, HiddenStateHost
from .deployments import Deployments
from .watch import Watch

__all__ = ["Hosts"]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_AGAIN_S = 2.0
"""After a host that could not be given what was learned, the next try."""


class _Joined:
    """One model: its host as the learner knows it, and why it is not used."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.deployments = Deployments(name, watch)
        self.host: HiddenStateHost | None = None
        self.reason: SonaError | None = NotReady(f"{name}: the learned adapters are being put on the model")
        """None: served with what was learned, or known to have no host."""
        self.without = ""
        self.problem = ""
        """What a deployment refused of what the others serve."""


class Hosts:
    """Brings each adaptable model's host to the learner as it comes; one that is missing keeps no other waiting."""

    def __init__(self, names: Iterable[str], watch: Watch) -> None:
        self._watch = watch
        self._joined = {name: _Joined(name, watch) for name in names}

    def __contains__(self, name: str) -> bool:
        return name in self._joined

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def host(self, name: str) -> HiddenStateHost | None:
        """That of this model while it is served with what was learned."""
        joined = self._joined.get(name)
        return None if joined is None or joined.reason is not None or joined.without else joined.host

    async def join(self, learner: Learner) -> None:
        """For ever, also without any model to join: the learner lives as long as this."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            for name, joined in self._joined.items():
                tasks.start_soon(self._follow, name, joined, learner)

    def check(self, name: str) -> bool:
        """Whether requests to this model may be adapted. Raises NotReady while what was learned is being put on it:
        its first answer after a restart must not come from the bare model.
        """
        joined = self._joined[name]
        if joined.reason is not None:
            raise joined.reason.with_traceback(None)
        return not joined.without

    def standing(self, backend: Backend) -> str:
        """See `Deployments`."""
        joined = self._joined.get(backend.name)
        return "" if joined is None else joined.deployments.standing(backend)

    def check_all(self) -> None:
        """Raises what keeps a model that answers from being adapted."""
        for name in self._joined:
            if self._watch.answers(name):
                self.check(name)

    def problems(self) -> dict[str, str]:
        """Model -> why its hidden states are not in use, for those where it is so."""
        told = {
            name: str(one.reason or "") or one.without or one.problem or one.deployments.problem
            for name, one in self._joined.items()
        }
        return {name: reason for name, reason in told.items() if reason}

    async def _follow(self, name: str, joined: _Joined, learner: Learner) -> None:
        away = False
        while True:
            host = joined.deployments.host()
            await self._complete(name, joined)
            joined.without = "" if host is not None else self._watch.without_host(name)
            if host is not None and host is not joined.host:
                await self._attach(name, joined, host, learner)
            elif host is not None and away:
                learner.retry(name)
            elif joined.without and joined.host is None:
                joined.reason = None
            away = host is None
            await anyio.sleep(_POLL_S)

    async def _complete(self, name: str, joined: _Joined) -> None:
        try:
            await joined.deployments.complete()
            joined.problem = ""
        except SonaError as error:
            if joined.problem != str(error):
                _log.error("%s: a deployment cannot be given what the others have learned: %s", name, error)
            joined.problem = str(error)

    async def _attach(self, name: str, joined: _Joined, host: HiddenStateHost, learner: Learner) -> None:
        """What goes wrong here concerns this model alone."""
        try:
            await learner.attach(name, host)
        except HostAway as error:
            joined.reason = error
        except SonaError as error:
            joined.reason = error
            _log.error("%s: what was learned cannot be put on it: %s", name, error)
        except Exception as error:
            _log.exception("%s: what was learned cannot be put on it", name)
            joined.reason = SonaError(f"{name}: what was learned cannot be put on it: {error}; the log says more")
        else:
            joined.host, joined.reason = host, None
            return
        await anyio.sleep(_AGAIN_S)
