"""Deployments of one model whose hidden states can be reached: one is a host by itself, several are together."""

from __future__ import annotations

import logging

from ..errors import NotReady
from ..protocols import Backend, HiddenStateHost, HostReporter
from .replicas import Replicas, replicas_of
from .watch import Watch

__all__ = ["Deployments"]

_log = logging.getLogger(__name__)


class Deployments:
    """Those with the same model are replicas. One with another model is told of and left alone: what it answers is
    neither adapted nor learned from, for what was learned is about the others' model.
    """

    def __init__(self, name: str, watch: Watch) -> None:
        self._name, self._watch = name, watch
        self._replicas: Replicas | None = None
        self._apart: dict[int, str] = {}

    @property
    def problem(self) -> str:
        """Which deployments are not the others' replicas, and why."""
        return "; ".join(self._apart.values())

    def host(self) -> HiddenStateHost | None:
        """What the learner speaks to; None while none answers. The same one until another model answers, which is
        taken only when none of the known one is there.
        """
        backends = self._watch.adaptable(self._name)
        there = [(i, one.host) for i, (one, answers) in enumerate(backends, 1) if answers and one.host is not None]
        if len(backends) == 1:
            return there[0][1] if there else None
        hosts = [host for _, host in there if host is not None]
        known = self._replicas
        if hosts and (known is None or all(host.fingerprint != known.fingerprint for host in hosts)):
            known = self._replicas = replicas_of(self._name, hosts[0])
        if known is None:
            return None
        same = [host for host in hosts if host.fingerprint == known.fingerprint]
        known.update(same)
        self._tell({i: host.fingerprint for i, host in there if host is not None and host not in same}, known)
        return known if same else None

    async def complete(self) -> None:
        """Gives replicas that came later what the others serve."""
        if self._replicas is not None:
            await self._replicas.complete()

    def standing(self, backend: Backend) -> str:
        """Why this deployment's answers are not its model's; empty when they are. Raises NotReady while it has not
        all that the others serve: its first answer must not come from the bare model.
        """
        if not backend.adaptable or self._replicas is None or len(self._watch.adaptable(self._name)) == 1:
            return ""
        host = backend.host
        if host is None:
            if isinstance(backend, HostReporter) and backend.host_problem:
                return ""  # it answers for itself, and says why
            raise NotReady(f"{self._name}: this deployment has not told which model it serves")
        if host.fingerprint != self._replicas.fingerprint:
            return self._difference(host.fingerprint, self._replicas)
        if not self._replicas.is_complete(host):
            raise NotReady(f"{self._name}: this deployment is being given what the others have learned")
        return ""

    def _difference(self, fingerprint: str, known: Replicas) -> str:
        return (
            f"this deployment serves another model ({fingerprint}) than the others of {self._name} "
            f"({known.fingerprint}): it is given no adapters and is not learned from"
        )

    def _tell(self, prints: dict[int, str], known: Replicas) -> None:
        apart = {i: f"deployment {i}: {self._difference(one, known)}" for i, one in prints.items()}
        for i, told in apart.items():
            if self._apart.get(i) != told:
                _log.error("%s, %s", self._name, told)
        self._apart = apart
