"""The way to the workers: one call to every rank of every engine, and one answer of it.

With data parallelism each engine holds its own adapters, captures and key-value cache: what writes goes to all of
them, what a request left behind lies on the one that served it. Not run on more than one engine; tested with fakes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .messages import Unanswered

__all__ = ["EngineClient", "Engines", "Result", "require"]

_log = logging.getLogger(__name__)

Result = dict[str, Any]
"""What a worker's method answers: ``ok``, ``error``, and its own fields."""

TIMEOUT_S = 300.0


class EngineClient(Protocol):
    """The part of vLLM's client that is used. ``engine_core`` has more than one engine with data parallelism."""

    async def collective_rpc(self, method: str, timeout: float | None, args: tuple[Any, ...]) -> Any: ...  # noqa: ASYNC109


class Engines:
    """All engines behind one server."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        core = getattr(client, "engine_core", None)
        identities = getattr(core, "core_engines", None) or ()
        self._core = core if len(identities) > 1 and hasattr(core, "call_utility_all_async") else None
        self._identities: Sequence[Any] = tuple(identities) if self._core is not None else (None,)

    def __len__(self) -> int:
        return len(self._identities)

    async def all(self, method: str, *args: Any) -> list[Result]:
        """One result an engine, in order. Raises Unanswered (503) when an engine does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._core is None:
                    return [_of_ranks(await self._client.collective_rpc(method, TIMEOUT_S, args))]
                told = await self._core.call_utility_all_async("collective_rpc", method, TIMEOUT_S, args, None)
                return [_of_ranks(ranks) for ranks in told]
        except Unanswered:
            raise
        except Exception as error:
            raise _away(method, error) from error

    async def one(self, index: int, method: str, *args: Any) -> Result:
        """The result of one engine."""
        if self._core is None:
            return (await self.all(method, *args))[0]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                told = await self._core._call_utility_async(
                    "collective_rpc", method, TIMEOUT_S, args, None, engine=self._identities[index]
                )
        except Exception as error:
            raise _away(method, error) from error
        return _of_ranks(told)

    async def everywhere(self, method: str, *args: Any) -> Result:
        """For what must succeed on each engine. Raises Unanswered with the first error."""
        results = await self.all(method, *args)
        for result in results:
            require(result)
        return results[0]

    async def install(self) -> Result:
        """Installs the hook, or finds it installed. ``instance`` names this start of all engines."""
        results = await self.all("sona_install")
        first = next((one for one in results if not one.get("ok", True)), results[0])
        started = [str(one.get("instance", "")) for one in results]
        instance = started[0] if len(started) == 1 else hashlib.sha256(" ".join(started).encode()).hexdigest()[:16]
        problems = [str(problem) for one in results for problem in one.get("problems") or ()]
        prints = {str(one.get("fingerprint", "")) for one in results}
        if len(prints) > 1:
            problems.append(f"the engines serve different models: {', '.join(sorted(prints))}")
        if not first.get("ok", True):
            problems.append(str(first.get("error") or "the hook could not be installed"))
        return {
            **first,
            "instance": instance,
            "engines": len(results),
            "unserved": {rid: reason for one in results for rid, reason in (one.get("unserved") or {}).items()},
            "disabled": next((str(one["disabled"]) for one in results if one.get("disabled")), ""),
            "problems": list(dict.fromkeys(problems)),
        }


def require(result: Result) -> Result:
    """Raises Unanswered with what the worker said, unless it went well."""
    if result.get("ok", True):
        return result
    if gone := result.get("gone"):
        message = str(result.get("error") or "these captures are no longer held; SONA_VLLM_CAPTURE_MB bounds them")
        raise Unanswered(410, message, kind="capture_gone", gone=list(gone))
    kind = str(result.get("kind") or "host_error")
    status = result.get("status")
    raise Unanswered(
        status if isinstance(status, int) and 400 <= status <= 599 else 400,
        str(result.get("error") or "the worker refused"),
        kind=kind,
        param=result.get("param"),
    )


def _of_ranks(ranks: Sequence[Any]) -> Result:
    """One result of all ranks of an engine. Ranks without the head (earlier pipeline stages) say ``last_pp`` false;
    the others hold the same, so the first speaks for all that succeeded.
    """
    told = [dict(one) for one in ranks if isinstance(one, Mapping)]
    if not told:
        raise Unanswered(
            503, "the workers do not know the plug-in's methods: is `sona` in VLLM_PLUGINS?", kind="no_hook"
        )
    speaking = [one for one in told if one.get("last_pp", True)] or told
    return next((one for one in speaking if not one.get("ok", True)), speaking[0])


def _away(method: str, error: Exception) -> Unanswered:
    _log.warning("%s failed: %s", method, error or type(error).__name__)
    # vLLM raises what a worker's dispatch raised as one exception of its own; the name is all there is to tell by.
    if "sona_" in str(error) and "attribute" in str(error):
        return Unanswered(
            503, "the workers do not know the plug-in's methods: is `sona` in VLLM_PLUGINS?", kind="no_hook"
        )
    return Unanswered(
        503, f"the engine does not answer ({method}): {error or type(error).__name__}", kind="engine_away"
    )
