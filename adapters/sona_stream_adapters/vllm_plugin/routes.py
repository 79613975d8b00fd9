"""What a proxy's learner asks of the engines, by name: ``GET info``, ``PUT adapters``, ``POST gradient``, ...

`Control` answers for it over HTTP; who holds the engines in its own process asks here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .codec import Arrays, CodecError, Facts, pack, unpack
from .codec_computed import (
    curvature_from,
    curvature_parts,
    evaluation_from,
    evaluation_parts,
    gradient_from,
    gradient_parts,
    signal_from,
)
from .encoding import Encoder
from .engines import Engines, Result, require
from .hook_watch import HookWatch
from .locating import Part, parts_of
from .merging import merge_curvatures, merge_evaluations, merge_gradients, merge_kls
from .messages import PREFIX, Answer, Question, Unanswered

__all__ = ["Routes"]

_PER_CAPTURE = ("advantages_", "logprobs_", "memory_")

Handle = Callable[["Routes", Question], Awaitable[Answer]]


class Routes:
    """``attach`` gives it the engines once they are there; until then it answers 503."""

    def __init__(self) -> None:
        self._engines: Engines | None = None
        self._encoder: Encoder | None = None
        self.info: Result = {}
        self.watch = HookWatch(self._look)
        self.counters: dict[str, int] = {"calls": 0, "refused_keys": 0, "stripped_requests": 0}

    def attach(self, engines: Engines, encoder: Encoder, info: Result) -> None:
        """From here on calls are answered."""
        self._engines, self._encoder, self.info = engines, encoder, info

    def count(self, name: str) -> None:
        """One more of these."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def limit(self, method: str, name: str) -> str:
        """Which limit the body of this call has. Raises Unanswered when there is no such call, or no engine yet."""
        return self._route(method, name)[1]

    async def ask(self, method: str, name: str, asked: Question) -> Answer:
        """Raises Unanswered naming what is wrong."""
        handle, _ = self._route(method, name)
        self.count("calls")
        try:
            return await handle(self, asked)
        except CodecError as error:
            raise Unanswered(400, str(error), param="body") from error

    def _route(self, method: str, name: str) -> tuple[Handle, str]:
        methods = _ROUTES.get(name)
        if methods is None:
            raise Unanswered(
                404, f"there is no {PREFIX}/{name[:50]}; there are: {', '.join(_ROUTES)}", kind="not_found"
            )
        found = methods.get(method)
        if found is None:
            raise Unanswered(405, f"{PREFIX}/{name} takes {' and '.join(methods)}", kind="method_not_allowed")
        if self._engines is None:
            raise Unanswered(503, "the engine is not there yet", kind="not_ready")
        return found

    @property
    def engines(self) -> Engines:
        """Those attached."""
        assert self._engines is not None
        return self._engines

    # ---- about this server

    async def _info(self, _: Question) -> Answer:
        """Looks again: a model that was loaded anew is wrapped anew."""
        return Answer(await self._look())

    async def _look(self) -> Result:
        if self._engines is not None:
            self.info = await self._engines.install()
        return self.info

    async def _stats(self, _: Question) -> Answer:
        return Answer({"engines": await self.engines.all("sona_stats"), "endpoint": dict(self.counters)})

    # ---- adapters and episodes

    async def _adapters(self, _: Question) -> Answer:
        return Answer(await self.engines.everywhere("sona_adapters"))

    async def _put_adapter(self, asked: Question) -> Answer:
        return Answer(
            await self.engines.everywhere("sona_put", asked.text("key"), asked.number("version"), asked.body)
        )

    async def _drop_adapter(self, asked: Question) -> Answer:
        version = asked.number("version") if "version" in asked.query else None
        return Answer(await self.engines.everywhere("sona_drop", asked.text("key"), version))

    async def _put_episode(self, asked: Question) -> Answer:
        results = await self.engines.all("sona_put_episode", asked.text("key"), asked.body)
        evicted = sorted({str(key) for one in results for key in require(one).get("evicted") or ()})
        return Answer({**results[0], "evicted": evicted})

    async def _drop_episode(self, asked: Question) -> Answer:
        return Answer(await self.engines.everywhere("sona_drop_episode", asked.text("key")))

    # ---- captures

    async def _capture(self, asked: Question) -> Answer:
        rid, hidden = asked.text("rid"), bool(asked.number("hidden", 0))
        results = [require(one) for one in await self.engines.all("sona_capture", rid, hidden)]
        for state in ("done", "running"):
            for result in results:
                if result.get("state") == state:
                    blob = result.get("blob")
                    return Answer(bytes(blob)) if blob else Answer({"state": state})
        if unserved := next((str(one["reason"]) for one in results if one.get("unserved")), ""):
            raise Unanswered(410, f"request {rid!r}: {unserved}", kind="unserved")
        reason = next((str(one["reason"]) for one in results if one.get("reason")), "it is no longer held")
        raise Unanswered(410, f"request {rid!r}: {reason}", kind="capture_gone", gone=[rid])

    async def _release(self, asked: Question) -> Answer:
        return Answer(await self.engines.everywhere("sona_release", asked.text("rid")))

    async def _keep(self, asked: Question) -> Answer:
        """On one engine: what belongs to a capture is computed where it lies."""
        return Answer(require(await self.engines.one(0, "sona_keep", asked.body)))

    async def _encode(self, asked: Question) -> Answer:
        assert self._encoder is not None
        if off := await self.watch.off():
            raise Unanswered(503, f"the hook is off, which reads an answer's states: {off}", kind="hook_off")
        return Answer(await self._encoder.encode(_json(asked.body), self.info))

    # ---- what is computed from captures

    async def _gradient(self, asked: Question) -> Answer:
        arrays, facts = unpack(asked.body)
        handles = _handles(facts)
        signal = signal_from(arrays, facts, len(handles))
        parts = await self._parts(handles, [len(one) for one in signal.advantages])
        found = []
        for part in parts:
            blob = asked.body if len(parts) == 1 else pack(_own(arrays, part), facts)
            found.append(gradient_from(*_unpacked(await self._computed(part, "sona_gradient", blob))))
        return Answer(pack(*gradient_parts(merge_gradients(found))))

    async def _evaluate(self, asked: Question) -> Answer:
        _, facts = unpack(asked.body)
        handles, tokens = _handles(facts), _tokens(facts)
        rows: dict[int, tuple[Any, Any]] = {}
        found = []
        for part in await self._parts(handles, tokens):
            arrays, said = _unpacked(await self._computed(part, "sona_evaluate", asked.body))
            one = evaluation_from(arrays, said, len(part.places))
            found.append(one)
            rows |= dict(zip(part.places, zip(one.logprobs, one.base_logprobs, strict=True), strict=True))
        arrays, said = evaluation_parts(merge_evaluations(found))
        for place, (logprobs, base) in rows.items():  # in the order of the question, whoever computed them
            arrays[f"logprobs_{place}"], arrays[f"base_logprobs_{place}"] = logprobs, base
        return Answer(pack(arrays, said))

    async def _predicted_kl(self, asked: Question) -> Answer:
        _, facts = unpack(asked.body)
        parts = await self._parts(_handles(facts), _tokens(facts))
        results = [await self._computed(part, "sona_predicted_kl", asked.body) for part in parts]
        kls = [float(one["kl"]) for one in results]
        return Answer({"kl": merge_kls(kls, [part.tokens for part in parts])})

    async def _hidden_space(self, _: Question) -> Answer:
        """Reads the reference text to the model, on whichever engine."""
        assert self._encoder is not None
        told, version = await self._encoder.reference(self.info)
        facts = unpack(told)[1]
        (part,) = await self._parts([str(facts["handle"])], [0])
        found = require(await self.engines.one(part.engine, "sona_hidden_space", part.handles, version))
        await self.engines.all("sona_release", str(facts["request_id"]))
        return Answer(bytes(found["blob"]))

    async def _curvature(self, asked: Question) -> Answer:
        _, facts = unpack(asked.body)
        parts = await self._parts(_handles(facts), _tokens(facts))
        results = [await self._computed(part, "sona_curvature", asked.body) for part in parts]
        found = [curvature_from(*_unpacked(one)) for one in results]
        return Answer(pack(*curvature_parts(merge_curvatures(found, [part.places for part in parts]))))

    async def _parts(self, handles: Sequence[str], tokens: Sequence[int]) -> list[Part]:
        return await parts_of(self.engines, handles, tokens)

    async def _computed(self, part: Part, method: str, blob: bytes) -> Result:
        """In slices, each of which decoding waits for; between them it goes on."""
        result = require(await self.engines.one(part.engine, method, part.handles, blob, {"sliced": True}))
        job = result.get("job")
        while job is not None and not result.get("done"):
            result = require(await self.engines.one(part.engine, "sona_advance", job))
        return result


def _own(arrays: Arrays, part: Part) -> Arrays:
    """The arrays of a gradient's question that concern these captures, numbered anew."""
    kept = {name: array for name, array in arrays.items() if not name.startswith(_PER_CAPTURE)}
    for i, place in enumerate(part.places):
        for name in _PER_CAPTURE:
            if f"{name}{place}" in arrays:
                kept[f"{name}{i}"] = arrays[f"{name}{place}"]
    return kept


def _unpacked(result: Result) -> tuple[Arrays, Facts]:
    return unpack(bytes(result["blob"]))


def _json(body: bytes) -> Facts:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Unanswered(400, "the body must be a JSON object", param="body") from None
    if not isinstance(value, dict):
        raise Unanswered(400, "the body must be a JSON object", param="body")
    return value


def _handles(facts: Facts) -> list[str]:
    handles = facts.get("handles")
    if not isinstance(handles, list) or not handles or not all(isinstance(one, str) for one in handles):
        raise Unanswered(400, "handles must be a list of at least one text", param="handles")
    return handles


def _tokens(facts: Facts) -> list[int]:
    tokens, handles = facts.get("tokens"), _handles(facts)
    whole = isinstance(tokens, list) and all(isinstance(one, int) and one >= 0 for one in tokens)
    if not whole or len(tokens or ()) != len(handles):
        raise Unanswered(400, "tokens must be a list of whole numbers, one a handle", param="tokens")
    return list(tokens or ())


_ROUTES: dict[str, dict[str, tuple[Handle, str]]] = {
    "info": {"GET": (Routes._info, "none")},
    "stats": {"GET": (Routes._stats, "none")},
    "adapters": {
        "GET": (Routes._adapters, "none"),
        "PUT": (Routes._put_adapter, "adapter"),
        "DELETE": (Routes._drop_adapter, "none"),
    },
    "episodes": {"PUT": (Routes._put_episode, "capture"), "DELETE": (Routes._drop_episode, "none")},
    "captures": {"GET": (Routes._capture, "none"), "DELETE": (Routes._release, "none")},
    "keep": {"POST": (Routes._keep, "capture")},
    "encode": {"POST": (Routes._encode, "none")},
    "gradient": {"POST": (Routes._gradient, "capture")},
    "evaluate": {"POST": (Routes._evaluate, "adapter")},
    "predicted_kl": {"POST": (Routes._predicted_kl, "adapter")},
    "hidden_space": {"GET": (Routes._hidden_space, "none")},
    "curvature": {"POST": (Routes._curvature, "none")},
}
"""Name -> method -> (handler, which limit its body has)."""
