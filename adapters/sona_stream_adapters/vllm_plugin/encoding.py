"""Teacher forcing: the capture of an answer that was given, from one prefill on the running engine."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from ..text import REFERENCE_VERSION, reference_ids
from .codec import Facts
from .engines import Engines, Result, require
from .messages import Unanswered

__all__ = ["Encoder", "Generating", "sampling_params"]

_log = logging.getLogger(__name__)

_TRIES = 100
_PAUSE_S = 0.01


class Generating(Protocol):
    """The part of vLLM's client that is used."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncIterator[Any]: ...
    def get_tokenizer(self) -> Any: ...


def sampling_params(**fields: Any) -> Any:
    """The class of vLLM, made."""
    from vllm import SamplingParams

    return SamplingParams(**fields)


class Encoder:
    """One server's. vLLM reads no prompt from its prefix cache whose log-probabilities are asked for."""

    def __init__(
        self,
        client: Generating,
        engines: Engines,
        *,
        max_tokens: int | None = None,
        params: Callable[..., Any] = sampling_params,
    ) -> None:
        """``max_tokens``: the model's context, where it is known."""
        self._client, self._engines, self._context, self._params = client, engines, max_tokens, params
        self._numbers = itertools.count()
        self._start = secrets.token_hex(4)
        self._releasing: set[asyncio.Task[None]] = set()

    async def warm_up(self) -> None:
        """The first prompt whose log-probabilities are asked for takes seconds: not at a lesson."""
        rid = f"sona-warm-up-{self._start}"
        try:
            await self._prefill([0, 0], [0, 0], rid, 1.0)
        except Exception as error:
            _log.warning("sona: the first encoded answer will be slow: %s", error or type(error).__name__)
        finally:
            await self._released(rid)

    async def encode(self, asked: Facts, info: Result) -> bytes:
        """Fields: ``prompt_ids``, ``answer_ids`` or ``answer`` (a text, which gets the end token), ``temperature``,
        ``rid``, ``hidden``. Raises Unanswered naming the field and its limit. Where it fails or is cancelled, the
        engines keep nothing of ``rid``.
        """
        vocabulary = int(info.get("vocab_size") or 1 << 31)
        prompt = _ids(asked, "prompt_ids", vocabulary)
        answer = _ids(asked, "answer_ids", vocabulary) if "answer_ids" in asked else await self._tokenized(asked)
        if self._context is not None and len(prompt) + len(answer) > self._context:
            raise Unanswered(
                400,
                f"prompt_ids and answer have {len(prompt) + len(answer)} tokens; the model's context is "
                f"{self._context}",
                param="answer",
            )
        rid = str(asked.get("rid") or f"sona-encode-{self._start}-{next(self._numbers)}")
        temperature = _temperature(asked)
        try:
            await self._prefill(prompt, answer, rid, temperature)
            return await self._captured(rid, bool(asked.get("hidden")))
        except BaseException:
            await self._released(rid)
            raise

    async def reference(self, info: Result) -> tuple[bytes, str]:
        """(the capture of the reference text, which version of it). Raises Unanswered."""
        try:
            lead, rest = reference_ids(await self._tokenizer(), (self._context or 1 << 31) - 1)
        except ValueError as error:
            raise Unanswered(400, str(error)) from error
        rid = f"sona-reference-{self._start}-{next(self._numbers)}"
        asked = {"prompt_ids": lead, "answer_ids": rest, "rid": rid}
        return await self.encode(asked, info), f"{REFERENCE_VERSION}:{len(rest)}"

    async def _prefill(self, prompt: list[int], answer: list[int], rid: str, temperature: float) -> None:
        ids, extra = prompt + answer, {"sona_rid": rid, "sona_teach": len(prompt)}
        if len(ids) == self._context:  # the engine wants room for a token of its own
            extra["sona_last"] = ids.pop()
        params = self._params(
            max_tokens=1,
            temperature=temperature,
            prompt_logprobs=0,
            detokenize=False,
            extra_args=extra,
        )
        name = f"sona-encode-{self._start}-{next(self._numbers)}"
        try:
            async for _ in self._client.generate(_rendered(ids), params, name):
                pass
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise Unanswered(400, f"the engine refuses this answer: {error}", param="answer") from error

    async def _captured(self, rid: str, hidden: bool) -> bytes:
        """The engine that ran it may hand over what it copied a moment after its last step."""
        for _ in range(_TRIES):
            for result in await self._engines.all("sona_capture", rid, hidden):
                if require(result).get("state") == "done":
                    return bytes(result["blob"])
            await asyncio.sleep(_PAUSE_S)
        raise Unanswered(
            503,
            "the encoded answer was not captured; /v1/sona/stats says whether the hook runs",
            kind="not_captured",
        )

    async def _released(self, rid: str) -> None:
        """Told to the engines, whatever becomes of the caller."""
        task = asyncio.create_task(self._release(rid))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    async def _release(self, rid: str) -> None:
        try:
            await self._engines.all("sona_release", rid)
        except Unanswered as error:
            _log.info("sona: an engine may keep what was read for %s: %s", rid, error)

    async def _tokenized(self, asked: Facts) -> list[int]:
        answer = asked.get("answer")
        if not isinstance(answer, str):
            raise Unanswered(400, "answer_ids (whole numbers) or answer (a text) is needed", param="answer")
        tokenizer = await self._tokenizer()
        ids = await asyncio.to_thread(tokenizer.encode, answer, add_special_tokens=False)
        end = getattr(tokenizer, "eos_token_id", None)
        ids = [int(one) for one in ids] + ([] if end is None else [int(end)])
        if not ids:
            raise Unanswered(400, "answer has no tokens", param="answer")
        return ids

    async def _tokenizer(self) -> Any:
        found = self._client.get_tokenizer()
        return await found if inspect.isawaitable(found) else found


def _rendered(ids: list[int]) -> dict[str, Any]:
    """As vLLM's own renderer gives it to the engine."""
    return {"type": "token", "prompt_token_ids": ids}


def _ids(asked: Facts, name: str, vocabulary: int) -> list[int]:
    ids = asked.get(name)
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        raise Unanswered(400, f"{name} must be a list of at least one whole number", param=name)
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise Unanswered(400, f"{name}: a token is outside the vocabulary of {vocabulary}", param=name)
    return ids


def _temperature(asked: Facts) -> float:
    value = asked.get("temperature", 1.0)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise Unanswered(
            400, f"temperature must be a finite number of at least 0, not {value!r}", param="temperature"
        )
    return float(value)


def _is_refusal(error: Exception) -> bool:
    """What vLLM says of a request that is wrong: a ValueError, since 0.32 a class of its own."""
    return isinstance(error, ValueError) or any(kind.__name__ == "VLLMClientError" for kind in type(error).__mro__)
