"""The live requests that concern the plug-in, followed through vLLM's scheduler outputs. Others cost nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..episodes import ActiveEpisodes
from .adapters import AdapterTable
from .counters import Counters
from .ending import Ending

__all__ = ["Binding", "Requests", "Stretch", "Tracked", "binding_from"]

MAX_NAME = 512
MAX_EPISODES = 64
MAX_NUMBER = (1 << 31) - 1
"""Of a version, or a position: rows keep versions in int32."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a request asks of the plug-in, from its `vllm_xargs`."""

    key: str | None = None
    version: int | None = None
    rid: str | None = None
    episodes: tuple[str, ...] = ()
    gates: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    teach: int | None = None
    """position from which on the prompt is an answer that was given"""
    last: int | None = None
    """that answer's last token, where it does not stand in the prompt: nothing is predicted from it"""


@dataclasses.dataclass(slots=True, eq=False)
class Stretch:
    """Neighbouring rows of the ring, so many a step. It grows with each step, nothing else does."""

    first: int
    width: int
    steps: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Tracked:
    """One live request."""

    request_id: str
    binding: Binding
    temperature: float
    """as asked for; 0 counts as 1"""
    prompt_ids: list[int]
    ending: Ending
    foreign: bool = False
    """vLLM's own LoRA serves it, too: its logits are not those of the lm_head alone"""
    settled: bool = False
    """its rows are tokens by now, not a prompt's chunks"""
    stretches: list[tuple[Stretch, range]] = dataclasses.field(default_factory=list)
    """where its rows lie in the ring, and which of each step's are its own; see `rows`"""
    active: ActiveEpisodes | None = None
    """what it found of the episodes that it names; stays with it until it ends"""
    draws: int = 0
    """of one that names episodes: the steps that drew tokens of it, this one included"""
    said: torch.Tensor | None = None
    """(RECENT,) int64 on the device: its newest tokens, as they were after so many of these steps:"""
    said_after: int = 0
    chunk: tuple[int, int] | None = None
    """teacher forcing: (first position, tokens) of this step"""
    taught: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """(n, d) each: states of the given answer, in order"""
    taught_next: int = 0
    """position whose state comes next"""
    taught_by: tuple[torch.Tensor, torch.Tensor, int] | None = None
    """factors and version that served while the answer was read"""

    @property
    def rows(self) -> list[int]:
        """Row ids in the ring, in the order of the tokens."""
        return [
            stretch.first + step * stretch.width + place
            for stretch, places in self.stretches
            for step in range(stretch.steps)
            for place in places
        ]


def binding_from(extra_args: Mapping[str, Any] | None, counters: Counters | None = None) -> Binding | None:
    """None when the request has nothing for us. What cannot be used is counted and left out: a request that vLLM
    has accepted is never refused here.
    """
    if not extra_args or not any(
        name in extra_args for name in ("sona", "sona_rid", "sona_episodes", "sona_teach")
    ):
        return None
    try:
        return _checked(extra_args)
    except (TypeError, ValueError, OverflowError):  # JSON's 1e999 is infinite
        if counters is not None:
            counters.bad_bindings += 1
        return None


def _checked(extra: Mapping[str, Any]) -> Binding:
    episodes = _list(extra.get("sona_episodes"))
    if len(episodes) > MAX_EPISODES:
        raise ValueError(f"there may be at most {MAX_EPISODES} sona_episodes")
    return Binding(
        key=_name(extra.get("sona")),
        version=_integer(extra.get("sona_version")),
        rid=_name(extra.get("sona_rid")),
        episodes=tuple(name for name in map(_name, episodes) if name is not None),
        gates=_weights(extra, "sona_gates", len(episodes)),
        shares=_weights(extra, "sona_shares", len(episodes)),
        teach=_integer(extra.get("sona_teach")),
        last=_integer(extra.get("sona_last")),
    )


def _weights(extra: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    """One for each episode; 1 where none is given."""
    weights = tuple(float(weight) for weight in _list(extra.get(name))) or (1.0,) * count
    if len(weights) != count or not all(math.isfinite(weight) and 0 <= weight <= 1 for weight in weights):
        raise ValueError(f"{name} must be numbers in 0..1, one for each of sona_episodes")
    return weights


def _name(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise ValueError("expected a name")
    return value


def _integer(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or int(value) != value or not 0 <= value <= MAX_NUMBER:
        raise ValueError(f"expected a whole number up to {MAX_NUMBER}")
    return int(value)


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise TypeError("expected a list")
    return list(value)


class Requests:
    """Request id of vLLM -> Tracked."""

    def __init__(self, table: AdapterTable, counters: Counters) -> None:
        self.live: dict[str, Tracked] = {}
        self.finished: list[Tracked] = []
        """since the last step, for whoever keeps captures; emptied by it"""
        self.teaching = 0
        """how many of the live ones have an answer read to them"""
        self.changed = False
        """whether the tracked requests are others than the last plan was made for, or some of them still read a
        prompt; unset by who plans
        """
        self._reading: dict[str, Tracked] = {}
        """those of the live ones whose rows are no tokens yet"""
        self._recalling: dict[str, Tracked] = {}
        """those that name episodes"""
        self._table = table
        self._counters = counters

    def follow(self, scheduled: Any) -> None:
        """One step's scheduler output: ends, beginnings, and how far each prompt is."""
        if self.live:
            for request_id in scheduled.finished_req_ids:
                self._end(request_id)
            cached = scheduled.scheduled_cached_reqs
            if self._reading or cached.resumed_req_ids:
                self._go_on(cached, scheduled)
        for new in scheduled.scheduled_new_reqs:
            self._begin(new, scheduled)
        for request_id, tracked in self._recalling.items():
            tracked.draws += tracked.settled and scheduled.num_scheduled_tokens.get(request_id, 0) > 0

    def release(self, rid: str) -> None:
        """What the live ones of this capture id leave is not wanted."""
        for tracked in self.live.values():
            if tracked.binding.rid == rid:
                tracked.binding = dataclasses.replace(tracked.binding, rid=None)
                self.changed = True

    def end_all(self) -> None:
        """Forget them: what they were bound to is gone."""
        for request_id in list(self.live):
            self._end(request_id)
        self.finished.clear()

    def _begin(self, new: Any, scheduled: Any) -> None:
        params = new.sampling_params
        binding = None if params is None else binding_from(params.extra_args, self._counters)
        known = self.live.get(new.req_id)
        if known is None and binding is None:
            return
        # A resumed request may come as a new one, its answer so far being part of what is read.
        read = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids or ()
        if known is None:
            assert binding is not None
            prompt, temperature = list(new.prompt_token_ids or ()), float(params.temperature)
            known = Tracked(new.req_id, binding, temperature, prompt, Ending.of(params))
            known.foreign = getattr(new, "lora_request", None) is not None
            self.live[new.req_id] = known
            if binding.episodes:
                known.draws = int(len(read) > len(known.prompt_ids))  # what was said before we came is not known
                self._recalling[new.req_id] = known
            if binding.teach is not None:
                known.prompt_ids += [] if binding.last is None else [binding.last]
                known.taught_next = max(binding.teach - 1, 0)
                self.teaching += 1
            if binding.key is not None:
                self._table.hold(binding.key, binding.version)
        self._advance(known, new.num_computed_tokens, scheduled, len(read))

    def _go_on(self, cached: Any, scheduled: Any) -> None:
        for request_id in cached.resumed_req_ids:
            if request_id in self.live:
                self._reading[request_id] = self.live[request_id]
        places = {request_id: i for i, request_id in enumerate(cached.req_ids)}
        for tracked in list(self._reading.values()):
            tracked.settled = False
            place = places.get(tracked.request_id)
            if place is not None:
                need = len(tracked.prompt_ids) + cached.num_output_tokens[place]
                self._advance(tracked, cached.num_computed_tokens[place], scheduled, need)

    def _advance(self, tracked: Tracked, computed: int, scheduled: Any, need: int) -> None:
        tokens = scheduled.num_scheduled_tokens.get(tracked.request_id, 0)
        tracked.settled = computed + tokens >= need
        if tracked.settled:
            self._reading.pop(tracked.request_id, None)
        else:
            self._reading[tracked.request_id] = tracked
        tracked.chunk = (computed, tokens)
        self.changed = True

    def _end(self, request_id: str) -> None:
        tracked = self.live.pop(request_id, None)
        if tracked is None:
            return
        self.changed = True
        self._reading.pop(request_id, None)
        self._recalling.pop(request_id, None)
        tracked.active = tracked.said = None
        binding = tracked.binding
        self.teaching -= binding.teach is not None
        if binding.key is not None:
            self._table.release(binding.key, binding.version)
        if binding.rid is not None:
            self.finished.append(tracked)
