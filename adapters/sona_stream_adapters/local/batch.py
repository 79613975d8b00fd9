"""The decoding batch: prompts are prefilled in chunks beside it, then join it, one row a choice."""

from __future__ import annotations

from collections import deque

import torch

from sona_stream.events import Piece
from sona_stream_adapters.head import Factors

from .adapters import AdapterTable, adapt
from .generation import Choice, Generation
from .kv_cache import SlotCache
from .memory import Memory, shares_of
from .model import LanguageModel
from .sampling import draw

__all__ = ["DecodeBatch"]

IDLE_CHUNK = 256
"""prompt tokens a forward pass while nobody is waiting for a token"""
BUSY_CHUNK = 64
"""the same while answers are streaming"""

Emitted = list[tuple[Generation, Piece]]


class _Prefill:
    """Prompts on their way into the batch. Several short ones share one padded forward pass; a long one goes
    alone, chunk by chunk.
    """

    def __init__(self, generations: list[Generation], model: LanguageModel) -> None:
        self.generations = generations
        self.cache = model.new_cache(len(generations))
        self._done = 0
        self._model = model

    def advance(self, budget: int) -> list[torch.Tensor] | None:
        """One forward pass over at most about `budget` tokens. Final hidden state (d,) of each prompt's last token
        when all are through, else None.
        """
        prompts = [generation.prompt_ids for generation in self.generations]
        longest = max(map(len, prompts))
        take = min(longest - self._done, max(budget // len(prompts), 1))
        # The padding of a shorter prompt comes after it, so causal attention never sees it.
        ids = [(prompt + [0] * (longest - len(prompt)))[self._done : self._done + take] for prompt in prompts]
        hidden = self._model.prefill(torch.tensor(ids), self.cache, [one.pinned for one in self.generations])
        start, self._done = self._done, self._done + take
        if self._done < longest:
            return None
        return [hidden[row, len(prompt) - 1 - start] for row, prompt in enumerate(prompts)]


class DecodeBatch:
    """Up to `max_rows` choices that decode together. Every method runs in the torch thread."""

    def __init__(
        self,
        model: LanguageModel,
        adapters: AdapterTable,
        memory: Memory,
        *,
        max_rows: int,
        max_cached_tokens: int,
    ) -> None:
        self.model = model
        self._adapters = adapters
        self._memory = memory
        self._max_rows = max_rows
        self._max_cached_tokens = max_cached_tokens
        self._cache: SlotCache = model.new_cache()
        self._rows: list[Choice] = []
        self._waiting: deque[Generation] = deque()
        self._prefill: _Prefill | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is to be generated."""
        return bool(self._rows or self._waiting or self._prefill)

    @property
    def rows(self) -> int:
        """Choices in the batch."""
        return len(self._rows)

    def submit(self, generation: Generation) -> None:
        """Queue behind those who wait."""
        self._waiting.append(generation)

    def advance(self) -> Emitted:
        """Forget the cancelled, prefill a chunk if someone waits, decode one token for everyone else."""
        self._sweep()
        return self._advance_prefill() + self._step()

    def fail(self) -> list[Generation]:
        """Empty the batch; everyone who was in it."""
        inside = [*self._waiting, *(self._prefill.generations if self._prefill else [])]
        inside += {id(choice.generation): choice.generation for choice in self._rows}.values()
        self._waiting.clear()
        self._rows, self._prefill, self._cache = [], None, self.model.new_cache()
        return inside

    def _sweep(self) -> None:
        for row in reversed(range(len(self._rows))):
            choice = self._rows[row]
            if choice.generation.cancelled:
                choice.generation.close()
                self._leave(row)
            elif choice.finished:
                choice.remember()
                self._leave(row)
        if any(generation.cancelled for generation in self._waiting):
            self._waiting = deque(generation for generation in self._waiting if not generation.cancelled)
        if self._prefill and all(generation.cancelled for generation in self._prefill.generations):
            self._prefill = None

    def _leave(self, row: int) -> None:
        self._cache.drop(row)
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last

    def _advance_prefill(self) -> Emitted:
        if self._prefill is None:
            chosen = self._admit()
            if not chosen:
                return []
            self._prefill = _Prefill(chosen, self.model)
        states = self._prefill.advance(BUSY_CHUNK if self._rows else IDLE_CHUNK)
        if states is None:
            return []
        done, self._prefill = self._prefill, None
        choices = [
            (choice, row) for row, gen in enumerate(done.generations) for choice in gen.choices if gen.active
        ]
        if not choices:
            return []
        emitted = self._emit([choice for choice, _ in choices], torch.stack([states[row] for _, row in choices]))
        for choice, row in choices:
            if not choice.finished:
                self._cache.adopt(done.cache, row, len(choice.generation.prompt_ids))
                self._rows.append(choice)
        return emitted

    def _admit(self) -> list[Generation]:
        """The next prompts: as many as fit the batch, the cache's memory, and one forward pass."""
        chosen: list[Generation] = []
        rows, longest = len(self._rows), max((self._room(c.generation) for c in self._rows), default=0)
        budget = BUSY_CHUNK if self._rows else IDLE_CHUNK
        while self._waiting:
            candidate = self._waiting[0]
            rows += len(candidate.choices)
            longest = max(longest, self._room(candidate))
            width = max(len(generation.prompt_ids) for generation in [*chosen, candidate])
            alone = not chosen and not self._rows
            fits = rows <= self._max_rows and rows * longest <= self._max_cached_tokens
            if not (fits or alone) or (chosen and width * (len(chosen) + 1) > budget):
                break
            chosen.append(self._waiting.popleft())
        return chosen

    @staticmethod
    def _room(generation: Generation) -> int:
        return len(generation.prompt_ids) + generation.max_tokens

    def _step(self) -> Emitted:
        if not self._rows:
            return []
        ids = torch.tensor([choice.recent[-1] for choice in self._rows])
        hidden = self.model.step(ids, self._cache, [choice.generation.pinned for choice in self._rows])
        return self._emit(self._rows, hidden)

    def _emit(self, choices: list[Choice], hidden: torch.Tensor) -> Emitted:
        """Draw a token for each choice from its final hidden state, (n, d)."""
        factors: list[Factors | None] = [choice.generation.serving(self._adapters) for choice in choices]
        logits = self.model.logits(adapt(hidden, factors))
        recent = [choice.recent for choice in choices]
        mixed = self._memory.mix([choice.generation for choice in choices], recent, hidden, logits)
        drawn = draw(logits, [choice.state for choice in choices])
        shares = shares_of(mixed, [token.token_id for token in drawn])
        return [
            (choice.generation, choice.take(token, state, entry, share))
            for choice, token, state, entry, share in zip(choices, drawn, hidden, factors, shares, strict=True)
        ]
