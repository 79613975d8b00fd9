"""Episodes of a model that has changed are made anew from the text that was kept of them, beside its answers.

Begins when a host attaches, newest first and one at a time, for at most half of the time. What is done is durable
one by one, so after a crash the rest is gone on with.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import anyio
import numpy as np

from ..engine.memory import EpisodeMemory
from ..errors import HostAway, HostError, InvalidRequest, NotFound, NotReady, SonaError, UpstreamError
from ..events import Endpoint, Head, Request
from ..lora import Capture
from ..protocols import Backend, HiddenStateHost
from ..wire import decode_request
from .hosts import Hosts

__all__ = ["Backends", "Renewal"]

_log = logging.getLogger(__name__)

_POLL_S = 0.25
_BEGIN_S = 1.0
"""From a host's attaching: its first answers go first."""
_PAUSE_S = 0.05
_AGAIN_S = 5.0
_PAGE = 500
_FOR_THE_ANSWER = {
    "stream",
    "stream_options",
    "n",
    "best_of",
    "echo",
    "suffix",
    "logit_bias",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
}
"""Fields of a request that have no part in its prompt"""
_FOR_NOW = (408, 409, 425, 429)

Backends = Mapping[str, Sequence[Backend]]


class Renewal:
    """Over all models with hosts. Belongs to one event loop."""

    def __init__(self, memory: EpisodeMemory, hosts: Hosts, backends: Backends) -> None:
        self._memory, self._hosts, self._backends = memory, hosts, backends
        self._counts: dict[str, Counter[str]] = {}

    def stats(self) -> dict[str, dict[str, int]]:
        """Model -> episodes that another model made: ``waiting`` to be made anew, ``made_anew``, ``refused`` by the
        model, and ``without_text``, which are not used any more and expire. Models without any are left out.
        """
        return {name: dict(counts) for name, counts in self._counts.items() if any(counts.values())}

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            for name in self._hosts:
                tasks.start_soon(self._follow, name)

    async def _follow(self, name: str) -> None:
        done = ""
        while True:
            await anyio.sleep(_POLL_S)
            host = self._hosts.host(name)
            if host is None or host.fingerprint == done:
                continue
            await anyio.sleep(_BEGIN_S)
            fingerprint = host.fingerprint
            try:
                await self._renew_all(name, host, fingerprint)
                done = fingerprint
            except SonaError as error:
                _log.info("%s: making episodes anew goes on later: %s", name, error)
                await anyio.sleep(_AGAIN_S)
            except Exception:  # answers do not depend on it
                _log.exception("%s: episodes cannot be made anew", name)
                done = fingerprint

    async def _renew_all(self, name: str, host: HiddenStateHost, fingerprint: str) -> None:
        """Raises HostAway when the host leaves meanwhile."""
        counts = self._counts.setdefault(name, Counter())
        keys, counts["without_text"] = await self._look(name, fingerprint)
        counts["waiting"], counts["refused"] = len(keys), 0
        if keys or counts["without_text"]:
            _log.info(
                "%s is another model now: %d episodes are made anew, %d wait to expire because their text is not "
                "kept (sona.storage: text would keep it)",
                name,
                len(keys),
                counts["without_text"],
            )
        for key in keys:
            began = time.monotonic()
            if self._hosts.host(name) is not host or host.fingerprint != fingerprint:
                raise HostAway(f"{name}: its host has left")
            counts[await self._renew(name, host, key)] += 1
            counts["waiting"] -= 1
            await anyio.sleep(max(_PAUSE_S, time.monotonic() - began))

    async def _look(self, name: str, fingerprint: str) -> tuple[list[str], int]:
        """-> keys of those that can be made anew, and how many cannot."""
        keys: list[str] = []
        without, below = 0, None
        while page := await self._memory.stale(name, fingerprint, below=below, limit=_PAGE):
            keys += [one.key for one in page if one.renewable]
            without += sum(not one.renewable for one in page)
            below = page[-1].number
        return keys, without

    async def _renew(self, name: str, host: HiddenStateHost, key: str) -> str:
        """-> what it counts as. Raises HostAway, StateError: the same may go well later."""
        episode = await self._memory.find(key)
        if episode is None or episode.text is None:
            return "gone"
        try:
            text = episode.text
            made = await self.encoded(name, host, text.body, text.answer, request_id=f"renew-{key}")
            space = await host.hidden_space()
            await self._memory.renew(
                key,
                fingerprint=made.fingerprint,
                hidden=np.asarray(made.hidden, np.float32),
                token_ids=np.asarray(made.token_ids, np.int32),
                space=space,
            )
        except NotFound:
            return "gone"
        except (HostError, InvalidRequest) as error:
            _log.warning("%s: episode %s cannot be made anew: %s", name, key, error)
            return "refused"
        return "made_anew"

    async def encoded(
        self, name: str, host: HiddenStateHost, body: bytes | None, answer: str, *, request_id: str
    ) -> Capture:
        """States and tokens of this answer to the request with this body, whichever model it was sent to. Raises
        HostError, InvalidRequest; HostAway: the same may go well later.
        """
        prompt = await self._prompt_ids(name, host, body)
        return await host.encode(prompt, answer, request_id=request_id, hidden=True)

    async def _prompt_ids(self, name: str, host: HiddenStateHost, body: bytes | None) -> tuple[int, ...]:
        """As the model reads the request now: a backend names them at the head of an answer, which ends there."""
        backend = self._backend(name, host.fingerprint)
        request = _request(name, body)
        try:
            async with backend(request) as events:
                async for event in events:
                    if isinstance(event, Head) and event.prompt_ids:
                        return event.prompt_ids
                    break
        except UpstreamError as error:
            refused = 400 <= error.status < 500 and error.status not in _FOR_NOW
            raise (HostError if refused else HostAway)(str(error)) from error
        finally:
            with anyio.CancelScope(shield=True):
                await _release(host, request.id)
        raise HostError(f"{name} does not tell the token ids of a prompt")

    def _backend(self, name: str, fingerprint: str) -> Backend:
        for backend in self._backends[name]:
            if backend.host is not None and backend.host.fingerprint == fingerprint:
                return backend
        raise HostAway(f"{name}: none of its deployments serves {fingerprint}")


async def _release(host: HiddenStateHost, request_id: str) -> None:
    """What the host captured of an answer that nobody wanted."""
    try:
        await host.release(request_id)
    except NotReady as error:
        _log.debug("%s", error)


def _request(name: str, body: bytes | None) -> Request:
    """The same prompt, for one token of an answer. Raises InvalidRequest for a body that cannot be read."""
    said = json.loads(body or b"{}")
    endpoint: Endpoint = "chat.completions" if "messages" in said else "completions"
    asked = {field: value for field, value in said.items() if field not in _FOR_THE_ANSWER}
    shortest = json.dumps({**asked, "max_tokens": 1}).encode()
    decoded = decode_request(endpoint, shortest)
    return Request(
        id=f"renew-{secrets.token_hex(8)}",
        endpoint=decoded.endpoint,
        model=name,
        requested_model=decoded.model,
        body=shortest,
        messages=decoded.messages,
        prompt=decoded.prompt,
        query=decoded.query,
        sampling=decoded.sampling,
        objections=decoded.objections,
        constrained=decoded.constrained,
        adapt=False,
        received_at=time.time(),
    )
