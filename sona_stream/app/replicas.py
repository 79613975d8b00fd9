"""Several deployments of one model as one `HiddenStateHost`: each serves the same adapters, an answer is learned
from wherever it was given, and whichever is there computes.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import numpy as np
from numpy.typing import NDArray

from ..budgets import BoundedHost
from ..errors import CaptureGone, HostAway, HostError, NotAdapted, SonaError
from ..lora import (
    F32,
    Capture,
    Curvature,
    Evaluation,
    HiddenSpace,
    LoraGradient,
    LoraWeights,
    TokenSignal,
)
from ..protocols import HiddenStateHost, RetainingHost

__all__ = ["Replicas", "RetainingReplicas", "replicas_of"]

_OWNERS = 8192
_MAX_BYTES, _FEW = 256 << 20, 64

T = TypeVar("T")
Ids = Sequence[int] | NDArray[np.int32]


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    """One replica, and whether it has every adapter that it is meant to have."""

    host: HiddenStateHost
    complete: bool = False


def replicas_of(name: str, first: HiddenStateHost) -> Replicas:
    """Those of one model, which is the first one's."""
    return (RetainingReplicas if isinstance(first, RetainingHost) else Replicas)(name, first)


class Replicas:
    """``update`` says who is there now. What a replica holds of captures and episodes is its own: the one that
    answered is asked about its answer, and another one makes the same again from token ids when it has to compute.
    """

    def __init__(self, name: str, first: HiddenStateHost) -> None:
        self._name, self._dim, self._fingerprint = name, first.hidden_dim, first.fingerprint
        self._members: list[_Member] = []
        self._meant: OrderedDict[str, tuple[int, LoraWeights]] = OrderedDict()
        self._owners: OrderedDict[str, HiddenStateHost] = OrderedDict()
        self._changing = anyio.Lock()

    # ---- who is there

    def update(self, hosts: Sequence[HiddenStateHost]) -> None:
        """These answer now, all with this fingerprint, in the configuration's order."""
        known = {id(one.host): one for one in self._members}
        self._members = [known.get(id(host)) or _Member(host) for host in hosts]

    def is_complete(self, host: HiddenStateHost) -> bool:
        """Whether this replica may answer: it has what the others serve."""
        return any(one.host is host and one.complete for one in self._members)

    async def complete(self) -> None:
        """Gives those who came later what the others have. Raises what a replica refuses, after all were tried."""
        async with self._changing:
            refused: SonaError | None = None
            for member in [one for one in self._members if not one.complete]:
                try:
                    for key, (version, weights) in self._meant.items():
                        await member.host.put_adapter(key, version, weights)
                    member.complete = True
                except HostAway:
                    continue
                except SonaError as error:
                    refused = error
            if refused is not None:
                raise refused

    # ---- HiddenStateHost

    @property
    def hidden_dim(self) -> int:
        """D of the final hidden state."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Every replica's."""
        return self._fingerprint

    async def put_adapter(self, key: str, version: int, weights: LoraWeights) -> None:
        """On each that is there; the others get it before they answer. What one of them refuses none serves."""
        async with self._changing:
            members = self._there()
            told = await _each(members, lambda host: host.put_adapter(key, version, weights))
            self._mark(members, told)
            refusal = next((one for one in told if isinstance(one, SonaError) and not _is_away(one)), None)
            if refusal is not None:
                await self._take_back(key, members, told)
                raise refusal
            if all(map(_is_away, told)):
                raise HostAway(f"{self._name}: no replica answers now")
            self._meant[key] = (version, weights)
            self._meant.move_to_end(key)
            self._make_room()

    def holds_adapter(self, key: str) -> bool:
        """Whether each that is there does, and one that comes late would be given it."""
        held = [one.host.holds_adapter(key) for one in self._members if isinstance(one.host, BoundedHost)]
        if key not in self._meant or not all(held):
            return False
        self._meant.move_to_end(key)
        return True

    def _make_room(self) -> None:
        """Of what is kept for those who come late, the oldest goes; whoever put it is asked again."""
        size = sum(weights.nbytes for _, weights in self._meant.values()) if len(self._meant) > _FEW else 0
        while size > _MAX_BYTES and len(self._meant) > 1:
            _, (_, weights) = self._meant.popitem(last=False)
            size -= weights.nbytes

    async def drop_adapter(self, key: str) -> None:
        """Everywhere."""
        async with self._changing:
            self._meant.pop(key, None)
            _raise_first(await _each(self._there(), lambda host: host.drop_adapter(key)), but=HostAway)

    async def capture(self, request_id: str) -> Capture:
        """Of the replica that answered. Raises CaptureGone when none of those that are there knows it."""
        members = self._there()
        told = await _each(members, lambda host: host.capture(request_id))
        for member, one in zip(members, told, strict=True):
            if isinstance(one, Capture):
                return self._owned(one, member.host)
        for kind in (NotAdapted, HostAway, HostError, CaptureGone):
            for error in told:
                if isinstance(error, kind):
                    raise error
        raise HostAway(f"{self._name}: no replica answers now")

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
        """On one."""

        async def encoded(host: HiddenStateHost) -> Capture:
            made = await host.encode(
                prompt_ids,
                answer,
                request_id=request_id,
                temperature=temperature,
                adapter_key=adapter_key,
                weights=weights,
                hidden=hidden,
            )
            return self._owned(made, host)

        return await self._ask((), encoded)

    async def gradient(self, captures: Sequence[Capture], signal: TokenSignal) -> LoraGradient:
        """On one."""
        return await self._ask(captures, lambda host: host.gradient(captures, signal))

    async def predicted_kl(self, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights) -> float:
        """On one."""
        return await self._ask(captures, lambda host: host.predicted_kl(captures, old, new))

    async def evaluate(self, captures: Sequence[Capture], weights: LoraWeights) -> Evaluation:
        """On one."""
        return await self._ask(captures, lambda host: host.evaluate(captures, weights))

    async def curvature(self, captures: Sequence[Capture], elsewhere: F32 | None = None) -> Curvature:
        """On one."""
        return await self._ask(captures, lambda host: host.curvature(captures, elsewhere))

    async def hidden_space(self) -> HiddenSpace:
        """Of one: it is the same of all."""
        return await self._ask((), lambda host: host.hidden_space())

    async def put_episode(
        self, key: str, hidden: NDArray[np.float32], token_ids: NDArray[np.int32], space: HiddenSpace
    ) -> None:
        """On each that is there."""
        told = await _each(self._there(), lambda host: host.put_episode(key, hidden, token_ids, space))
        _raise_first(told, but=HostAway)

    def holds_episode(self, key: str) -> bool:
        """Whether each that is there does."""
        return all(member.host.holds_episode(key) for member in self._members)

    async def drop_episode(self, key: str) -> None:
        """Everywhere."""
        _raise_first(await _each(self._there(), lambda host: host.drop_episode(key)), but=HostAway)

    async def release(self, request_id: str) -> None:
        """Everywhere."""
        self._owners.pop(request_id, None)
        _raise_first(await _each(self._there(), lambda host: host.release(request_id)), but=HostAway)

    # ---- how

    def _there(self) -> list[_Member]:
        if not self._members:
            raise HostAway(f"{self._name}: no replica answers now")
        return list(self._members)

    def _mark(self, members: list[_Member], told: Sequence[object]) -> None:
        for member, one in zip(members, told, strict=True):
            if _is_away(one):
                member.complete = False

    async def _take_back(self, key: str, members: list[_Member], told: Sequence[object]) -> None:
        """Those who took what another refused serve again what they served before."""
        before = self._meant.get(key)
        took = [member for member, one in zip(members, told, strict=True) if not isinstance(one, Exception)]
        if before is None:
            back = await _each(took, lambda host: host.drop_adapter(key))
        else:
            back = await _each(took, lambda host: host.put_adapter(key, *before))
        self._mark(took, back)

    async def _ask(self, captures: Sequence[Capture], ask: Callable[[HiddenStateHost], Awaitable[T]]) -> T:
        """Of the one that holds all these captures if there is one, else the first; if that is away, the next."""
        owners = {id(self._owners.get(one.request_id)) for one in captures}
        hosts = [member.host for member in self._there()]
        hosts.sort(key=lambda host: owners != {id(host)})  # stable
        away = HostAway(f"{self._name}: no replica answers now")
        for host in hosts:
            try:
                return await ask(host)
            except HostAway as error:
                away = error
        raise away

    def _owned(self, capture: Capture, host: HiddenStateHost) -> Capture:
        self._owners[capture.request_id] = host
        self._owners.move_to_end(capture.request_id)
        while len(self._owners) > _OWNERS:
            self._owners.popitem(last=False)
        return capture


class RetainingReplicas(Replicas):
    """Of hosts that are `RetainingHost`, too."""

    async def penalty(
        self,
        captures: Sequence[Capture],
        reference: LoraWeights,
        current: LoraWeights,
        *,
        top_k: int | None = None,
    ) -> LoraGradient:
        """On one."""

        async def asked(host: HiddenStateHost) -> LoraGradient:
            assert isinstance(host, RetainingHost)
            return await host.penalty(captures, reference, current, top_k=top_k)

        return await self._ask(captures, asked)


async def _each(members: Sequence[_Member], ask: Callable[[HiddenStateHost], Awaitable[T]]) -> list[T | SonaError]:
    """What each answers or refuses, side by side."""
    told: list[T | SonaError] = [HostAway("not asked")] * len(members)

    async def one(i: int, host: HiddenStateHost) -> None:
        try:
            told[i] = await ask(host)
        except SonaError as error:
            told[i] = error

    async with anyio.create_task_group() as tasks:
        for i, member in enumerate(members):
            tasks.start_soon(one, i, member.host)
    return told


def _is_away(told: object) -> bool:
    return isinstance(told, HostAway)


def _raise_first(told: Sequence[object], *, but: type[SonaError]) -> None:
    for one in told:
        if isinstance(one, SonaError) and not isinstance(one, but):
            raise one
