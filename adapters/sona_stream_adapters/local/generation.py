"""One request inside the torch thread: its choices, and what becomes of each token drawn for them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sona_stream.events import AdapterRef, EpisodeRef, Piece, Usage
from sona_stream.lora import Capture
from sona_stream_adapters.episodes import RECENT, START
from sona_stream_adapters.head import Factors
from sona_stream_adapters.text import AnswerText, Item, token_names

from .adapters import AdapterTable
from .capture import CaptureBuilder
from .memory import Recalled
from .sampling import Drawn, SamplingState

__all__ = ["Choice", "Generation"]


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
    """of every token; else each takes the newest version"""
    settled: bool
    """whether every token is drawn as the first, also one without an adapter: where layers inside the model are
    adapted, the cache's keys and values are of the version that made them"""
    episodes: tuple[EpisodeRef, ...]
    """remembered answers that it draws on, as far as they are here"""
    keep: Callable[[Capture], None] | None
    """takes the capture of each choice; None when nothing is to be remembered"""
    fingerprint: str
    hidden_dim: int
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]
    cancelled: bool = False
    choices: list[Choice] = dataclasses.field(default_factory=list)
    recalled: Recalled | None = None
    """what `Memory` found of its episodes"""

    def __post_init__(self) -> None:
        self.choices = [Choice(self, index, state) for index, state in enumerate(self.sampling)]

    @property
    def active(self) -> bool:
        """Whether some choice still wants tokens."""
        return not self.cancelled and any(not choice.finished for choice in self.choices)

    def serving(self, table: AdapterTable) -> Factors | None:
        """The adapter of the next token."""
        return self.pinned if self.settled or self.pinned is not None else table.current(self.adapter)

    def close(self) -> None:
        """Hand over the captures: before the last event, so that feedback right after it finds them. A cancelled
        answer leaves what it has. What it held of remembered answers goes.
        """
        self.recalled = None
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
        self.recent = [START] * RECENT
        """the newest tokens, the last one last"""
        self._text = AnswerText(
            generation.tokenizer,
            generation.prompt_ids,
            stop=generation.stop,
            eos_ids=generation.eos_ids,
            max_tokens=generation.max_tokens,
        )
        self._capture = CaptureBuilder(generation.hidden_dim) if generation.keep is not None else None

    @property
    def produced(self) -> int:
        """Tokens so far."""
        return self._text.produced

    def take(self, drawn: Drawn, hidden: torch.Tensor, factors: Factors | None, memory: float = 0.0) -> Piece:
        """Account for one token drawn from the unadapted `hidden` (d,), of whose probability a share came from
        `memory`; returns what the client gets of it.
        """
        self.recent = [*self.recent[1:], drawn.token_id]
        if self._capture is not None:
            version = 0 if factors is None else factors.version
            self._capture.add(hidden, drawn.token_id, drawn.policy_logprob, version, memory)
        text, reason = self._text.take(drawn.token_id)
        self.finished = reason is not None
        return Piece(
            index=self.index,
            text=text,
            token_ids=(drawn.token_id,),
            logprobs=(drawn.logprob,),
            top_logprobs=(token_names(self.generation.tokenizer, drawn.top),) if self.state.top_logprobs else (),
            finish_reason=reason,
        )

    def remember(self) -> None:
        """Hand over the capture, once."""
        generation, builder = self.generation, self._capture
        self._capture = None
        if builder is None or generation.keep is None or not len(builder):
            return
        suffix = f":{self.index}" if self.index else ""
        inside = generation.pinned is not None and bool(generation.pinned.layers)
        generation.keep(
            builder.finish(
                request_id=generation.request_id + suffix,
                fingerprint=generation.fingerprint,
                prompt_ids=generation.prompt_ids,
                adapter_key=None if generation.adapter is None else generation.adapter.key,
                temperature=self.state.temperature,
                unadapted=not inside,
            )
        )
