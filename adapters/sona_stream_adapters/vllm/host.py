"""A vLLM server with the plug-in as a `HiddenStateHost`: everything is computed there, by handle."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sona_stream.budgets import Budget
from sona_stream.errors import CaptureGone, HostAway, HostError, NotAdapted
from sona_stream.events import AdapterRef, EpisodeRef
from sona_stream.lora import (
    F32,
    Capture,
    Curvature,
    Evaluation,
    HiddenSpace,
    LoraGradient,
    LoraWeights,
    TokenSignal,
)
from sona_stream_adapters.vllm_plugin import codec, codec_computed

from .cutting import first_tokens
from .link import Gone, Link, Unserved
from .served import Entry, ServedAdapters
from .served_episodes import ServedEpisodes

__all__ = ["VllmHost"]

_ALIASES = 8192
_TRIES = 3
_RUNNING_S, _POLL_S = 5.0, 0.05

T = TypeVar("T")
Ids = Sequence[int] | NDArray[np.int32]


class VllmHost:
    """One model on one server, over restarts of it: when another model comes back, this host is retired."""

    def __init__(self, name: str, link: Link, info: Mapping[str, Any], *, fetch_hidden: bool) -> None:
        """``info`` as the plug-in tells it. Raises HostError when a part is missing."""
        self._name, self._link, self._fetch = name, link, fetch_hidden
        try:
            self._dim, self._fingerprint = int(info["hidden_dim"]), str(info["fingerprint"])
            self.instance = str(info["instance"])
        except (KeyError, TypeError, ValueError) as error:
            raise HostError(f"{name}: the plug-in does not tell its {error}") from error
        self._served = ServedAdapters(self._put)
        self._episodes = ServedEpisodes(link, self._fingerprint)
        self._space: HiddenSpace | None = None
        self._aliases: OrderedDict[str, str] = OrderedDict()
        """Capture -> handle of what was kept or encoded again in its place."""
        self._shown: OrderedDict[str, int] = OrderedDict()
        self._retired = ""

    # ---- what the backend asks

    def restarted(self, instance: str) -> None:
        """The same model was started again; its adapters and episodes are put before they are bound."""
        self.instance = instance
        self._served.lost()
        self._episodes.lost()

    def retire(self, reason: str) -> None:
        """Another model answers now. Whatever is asked of this host waits for its successor."""
        self._retired = reason

    async def bind(self, ref: AdapterRef) -> tuple[str, AdapterRef] | None:
        """See `ServedAdapters.bind`."""
        return await self._served.bind(ref)

    async def bind_episodes(self, refs: Sequence[EpisodeRef]) -> dict[str, list[Any]]:
        """See `ServedEpisodes.bind`."""
        return await self._episodes.bind(refs) if refs else {}

    async def restore(self) -> None:
        """Puts adapters that a restart or an eviction took. Raises HostAway."""
        await self._served.restore()

    def shown(self, request_id: str, tokens: int) -> None:
        """The answer has so many tokens; what was drawn until the engine heard of its end is not the answer's."""
        self._shown[request_id] = tokens
        while len(self._shown) > _ALIASES:
            self._shown.popitem(last=False)

    # ---- HiddenStateHost

    @property
    def hidden_dim(self) -> int:
        """D of the final hidden state."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """As the server computed it."""
        return self._fingerprint

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """From the next token on. Raises HostError with the server's reason, HostAway."""
        self._check_alive()
        await self._served.set(key, version, weights)

    async def drop_adapter(self, key: str) -> None:
        """Nothing is bound to it any more, whether or not the server can be told now."""
        if self._served.drop(key) and not self._retired:
            try:
                await self._link.json("DELETE", "adapters", key=key)
            except HostAway:
                return  # a server that starts again does not have it

    def holds_adapter(self, key: str) -> bool:
        """Whether it is there, or is put again before the request that names it."""
        return self._served.holds(key)

    def budgets(self) -> list[Budget]:
        """What is kept here for the server; its own bounds are at its `stats`."""
        held = (("adapters", self._served), ("episodes", self._episodes))
        return [Budget(what, "fixed", len(x), x.nbytes, x.max_bytes, x.evictions) for what, x in held]

    async def capture(self, request_id: str) -> Capture:
        """Raises CaptureGone when the server no longer holds it, NotAdapted when its hook had no part in it."""
        self._check_alive()
        shown = self._shown.get(request_id)
        capture = await self._fetched(request_id, hidden=self._fetch)
        if shown is None or len(capture) <= shown:
            return capture
        return first_tokens(await self._fetched(request_id, hidden=True), shown)

    async def _fetched(self, request_id: str, *, hidden: bool) -> Capture:
        deadline = asyncio.get_running_loop().time() + _RUNNING_S
        while True:
            try:
                told = await self._link.call("GET", "captures", rid=request_id, hidden=int(hidden))
            except Gone as error:
                raise CaptureGone(
                    f"{error}; with sona.storage: features its tokens would be encoded again"
                ) from error
            except Unserved as error:
                raise NotAdapted(str(error)) from error
            if told[:1] != b"{":
                return self._capture(told, request_id)
            if asyncio.get_running_loop().time() > deadline:
                raise HostAway(f"{self._name}: request {request_id} is still being answered")
            await asyncio.sleep(_POLL_S)

    async def release(self, request_id: str) -> None:
        """Unknown ids are fine."""
        self._aliases.pop(request_id, None)
        self._shown.pop(request_id, None)
        try:
            await self._link.json("DELETE", "captures", rid=request_id)
        except (Gone, HostAway):
            return  # it is gone

    async def encode(
        self,
        prompt_ids: Ids,
        answer: str | Ids,
        *,
        request_id: str = "",
        temperature: float = 1.0,
        adapter_key: str | None = None,
        weights: LoraWeights | None = None,
        hidden: bool = False,
    ) -> Capture:
        """Teacher-forced on the server. Raises HostError on ids out of range and beyond its context."""
        self._check_alive()
        capture = await self._encoded(prompt_ids, answer, request_id, temperature, hidden=hidden)
        evaluation = await self.evaluate([capture], self._nothing() if weights is None else weights)
        return dataclasses.replace(
            capture,
            logprobs=evaluation.logprobs[0],
            adapter_versions=np.zeros(len(capture), np.int32),
            adapter_key=adapter_key,
        )

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """See `TokenSignal` for the loss."""
        arrays, facts = codec_computed.signal_parts(signal)
        for i, capture in enumerate(captures):  # of the policy that drew it, whoever encoded it since
            arrays[f"logprobs_{i}"] = np.asarray(capture.logprobs, np.float32)
            if capture.memory is not None:
                arrays[f"memory_{i}"] = np.asarray(capture.memory, np.float32)
        told = await self._ask("gradient", captures, arrays, facts)
        return self._read(lambda: codec_computed.gradient_from(*codec.unpack(told)))

    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """Mean over tokens of 1/2 Var_{p_old}(W (h'_new - h'_old) / T)."""
        arrays, facts = codec.weights_parts(old, "old.")
        more, others = codec.weights_parts(new, "new.")
        told = await self._ask("predicted_kl", captures, {**arrays, **more}, {**facts, **others})
        return self._read(lambda: float(codec.number_in(told, "kl")))

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """Over the whole vocabulary. Weights that are not finite are answered with ``finite=False``."""
        if not weights.is_finite():
            rows = [np.full(len(one), np.nan, np.float32) for one in captures]
            return Evaluation(np.nan, np.nan, rows, rows, np.nan, np.nan, finite=False)
        told = await self._ask("evaluate", captures, *codec.weights_parts(weights))
        return self._read(lambda: codec_computed.evaluation_from(*codec.unpack(told), len(captures)))

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """Of the unadapted policy on these captures."""
        told = await self._ask("curvature", captures, {} if elsewhere is None else {"elsewhere": elsewhere}, {})
        return self._read(lambda: codec_computed.curvature_from(*codec.unpack(told)))

    async def hidden_space(self) -> HiddenSpace:
        """Of the reference text's states, by one prefill on the server, the first time."""
        self._check_alive()
        if self._space is None:
            told = await self._link.call("GET", "hidden_space")
            self._space = self._read(lambda: codec_computed.space_from(*codec.unpack(told)))
        return self._space

    async def put_episode(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace
    ) -> None:
        """Raises HostError with the server's reason, HostAway."""
        self._check_alive()
        await self._episodes.set(key, hidden, token_ids, space)

    def holds_episode(self, key: str) -> bool:
        """Whether it is there, or is put again before the request that names it."""
        return key in self._episodes

    async def drop_episode(self, key: str) -> None:
        """No request is bound to it any more, whether or not the server can be told now."""
        if self._episodes.drop(key) and not self._retired:
            try:
                await self._link.json("DELETE", "episodes", key=key)
            except HostAway:
                return  # a server that starts again does not have it

    async def _put(self, name: str, entry: Entry) -> Iterable[str]:
        arrays, facts = codec.weights_parts(entry.weights)
        blob = codec.pack(arrays, {**facts, "fingerprint": self._fingerprint})
        told = await self._link.tensors("PUT", "adapters", blob, key=name, version=entry.version)
        return codec.names_in(told, "evicted")

    def _capture(self, told: bytes, request_id: str) -> Capture:
        capture = self._read(
            lambda: codec.capture_from(*codec.unpack(told), hidden_dim=self._dim, request_id=request_id)
        )
        if capture.fingerprint != self._fingerprint:
            raise HostAway(f"{self._name}: another model answers now ({capture.fingerprint})")
        return capture

    async def _encoded(
        self, prompt_ids: Ids, answer: str | Ids, request_id: str, temperature: float, *, hidden: bool = False
    ) -> Capture:
        body: dict[str, Any] = {
            "prompt_ids": [int(token) for token in prompt_ids],
            "temperature": temperature,
            "rid": f"{request_id or 'encode'}~{secrets.token_hex(4)}",
            "hidden": self._fetch or hidden,
        }
        if isinstance(answer, str):
            body["answer"] = answer
        else:
            body["answer_ids"] = [int(token) for token in answer]
        told = await self._link.tensors("POST", "encode", codec.json_bytes(body))
        return self._capture(told, request_id)

    async def _ask(self, path: str, captures: Sequence[Capture], arrays: codec.Arrays, facts: codec.Facts) -> bytes:
        """What is gone at the server is put back there, and asked again."""
        self._check(captures)
        for _ in range(_TRIES):
            handles = [await self._handle(capture) for capture in captures]
            blob = codec.pack(arrays, {**facts, "handles": handles, "tokens": [len(one) for one in captures]})
            try:
                return await self._link.tensors("POST", path, blob)
            except Gone as error:
                gone = set(error.handles) or set(handles)
                for capture, handle in zip(captures, handles, strict=True):
                    if handle in gone:
                        await self._bring_back(capture)
        raise HostError(
            f"{self._name}: the server cannot hold the captures of one call; SONA_VLLM_CAPTURE_MB bounds them"
        )

    async def _handle(self, capture: Capture) -> str:
        name = _identity(capture)
        if name in self._aliases:
            self._aliases.move_to_end(name)
            return self._aliases[name]
        return capture.handle or await self._bring_back(capture)

    async def _bring_back(self, capture: Capture) -> str:
        """From its hidden states where they are here, else from its token ids by another prefill."""
        if capture.hidden.shape[0]:
            told = await self._link.tensors("POST", "keep", codec.pack(*codec.capture_parts(capture, hidden=True)))
            handle = codec.text_in(told, "handle")
        elif len(capture.prompt_ids) and len(capture):
            again = await self._encoded(
                capture.prompt_ids, capture.token_ids, capture.request_id, capture.temperature
            )
            handle = again.handle or ""
        else:
            raise CaptureGone(
                f"{self._name}: the server no longer holds request {capture.request_id}, and its token ids were "
                "not kept; sona.storage: features would keep them"
            )
        self._aliases[_identity(capture)] = handle
        while len(self._aliases) > _ALIASES:
            self._aliases.popitem(last=False)
        return handle

    def _check_alive(self) -> None:
        if self._retired:
            raise HostAway(self._retired)

    def _check(self, captures: Sequence[Capture]) -> None:
        self._check_alive()
        if not captures or not any(len(capture) for capture in captures):
            raise HostError("captures: at least one token is needed")
        for capture in captures:
            if capture.fingerprint != self._fingerprint:
                raise HostError(
                    f"capture {capture.request_id!r} was made by another model: {capture.fingerprint}, "
                    f"not {self._fingerprint}"
                )

    def _nothing(self) -> LoraWeights:
        return codec.no_weights(self._dim)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except codec.CodecError as error:
            raise HostError(f"{self._name}: the plug-in's answer cannot be read: {error}") from error


def _identity(capture: Capture) -> str:
    return capture.handle or capture.request_id
