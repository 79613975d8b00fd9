"""One request inside the torch thread: its choices, and what becomes of each token drawn for them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sona_stream.events import AdapterRef, Piece, Usage
from sona_stream.lora import Capture
from sona_stream_adapters.head import Factors

from .adapters import AdapterTable
from .capture import CaptureBuilder
from .detokenize import Detokenizer, StopStrings
from .sampling import Drawn, SamplingState

__all__ = ["Choice", "Generation", "Item"]

Item = Piece | Usage | BaseException
"""What a stream's queue carries: pieces, then the usage (a clean end) or an exception"""


@dataclasses.dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """A request: one prompt, one or more choices. ``cancelled`` is set from the event loop and read here."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    eos_ids: frozenset[int]
    tokenizer: Any
    stop: tuple[str, ...]
    sampling: list[SamplingState]
    """one a choice"""
    adapter: AdapterRef | None
    pinned: Factors | None
    keep: Callable[[Capture], None] | None
    """takes the capture of each choice; None when nothing is to be remembered"""
    fingerprint: str
    hidden_dim: int
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]
    cancelled: bool = False
    choices: list[Choice] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.choices = [Choice(self, index, state) for index, state in enumerate(self.sampling)]

    @property
    def active(self) -> bool:
        """Whether some choice still wants tokens."""
        return not self.cancelled and any(not choice.finished for choice in self.choices)

    def serving(self, table: AdapterTable) -> Factors | None:
        """The adapter of the next token."""
        return self.pinned if self.pinned is not None else table.current(self.adapter)

    def close(self) -> None:
        """Hand over the captures: before the last event, so that feedback right after it finds them. A cancelled
        answer leaves what it has.
        """
        for choice in self.choices:
            choice.remember()

    def count(self) -> Usage:
        """Tokens so far."""
        made = sum(choice.produced for choice in self.choices)
        return Usage(prompt_tokens=len(self.prompt_ids), completion_tokens=made)


class Choice:
    """One answer being generated."""

    def __init__(self, generation: Generation, index: int, state: SamplingState) -> None:
        self.generation = generation
        self.index = index
        self.state = state
        self.finished = False
        self.produced = 0
        self.last_id = -1
        self._text = Detokenizer(generation.tokenizer, generation.prompt_ids)
        self._stops = StopStrings(generation.stop)
        self._capture = CaptureBuilder(generation.hidden_dim) if generation.keep is not None else None

    def take(self, drawn: Drawn, hidden: torch.Tensor, factors: Factors | None) -> Piece:
        """Account for one token drawn from the unadapted `hidden` (d,); returns what the client gets of it."""
        self.produced += 1
        self.last_id = drawn.token_id
        if self._capture is not None:
            version = 0 if factors is None else factors.version
            self._capture.add(hidden, drawn.token_id, drawn.policy_logprob, version)
        text, reason = self._advance(drawn.token_id)
        self.finished = reason is not None
        return Piece(
            index=self.index,
            text=text,
            token_ids=(drawn.token_id,),
            logprobs=(drawn.logprob,),
            top_logprobs=(self._named(drawn),) if self.state.top_logprobs else (),
            finish_reason=reason,
        )

    def _advance(self, token_id: int) -> tuple[str, str | None]:
        generation = self.generation
        if token_id in generation.eos_ids:
            return self._rest(""), "stop"
        text, stopped = self._stops.push(self._text.push(token_id))
        if stopped:
            return text, "stop"
        if self.produced >= generation.max_tokens:
            return self._rest(text), "length"
        return text, None

    def _rest(self, text: str) -> str:
        tail, stopped = self._stops.push(self._text.flush())
        return text + tail + ("" if stopped else self._stops.flush())

    def _named(self, drawn: Drawn) -> dict[str, float]:
        tokenizer = self.generation.tokenizer
        names: dict[str, float] = {}
        for token_id, logprob in drawn.top:  # two ids may look alike; the likelier one is shown
            text = tokenizer.decode([token_id])
            if not text or "\ufffd" in text:  # part of a character, or a special token: its name in the vocabulary
                text = tokenizer.convert_ids_to_tokens(token_id)
            names.setdefault(text, logprob)
        return names

    def remember(self) -> None:
        """Hand over the capture, once."""
        generation, builder = self.generation, self._capture
        self._capture = None
        if builder is None or generation.keep is None or not len(builder):
            return
        suffix = f":{self.index}" if self.index else ""
        generation.keep(
            builder.finish(
                request_id=generation.request_id + suffix,
                fingerprint=generation.fingerprint,
                prompt_ids=generation.prompt_ids,
                adapter_key=None if generation.adapter is None else generation.adapter.key,
                temperature=self.state.temperature,
            )
        )
