"""The clients: one that is taught, one whose ratings are shuffled, and one that only looks on."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import openai
from live_adaptation import MAX_TOKENS, MODEL, SYSTEM, TEMPERATURE, Answer, Tenant, questions

__all__ = ["Bystander", "Greedy", "Streaming"]

PROBES = 8
"""unseen questions that the bystander asks, one request at a time"""


class Streaming(Tenant):
    """A tenant of the live example whose answers come through the `openai` client, as a stream."""

    def __init__(self, base_url: str, key: str) -> None:
        super().__init__(base_url, key)
        self.openai = _client(base_url, key)
        self.adapter = "none"
        """that served the last answer"""
        self.given = 0
        """pieces of feedback"""

    async def __aenter__(self) -> Self:
        """Leaving closes its connections."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Whatever happened."""
        await self.openai.close()
        await self.http.aclose()

    async def ask(self, question: str, seed: int) -> Answer:
        """One answer, drawn at the temperature of the example."""
        async with self.turn:
            said = await _streamed(self.openai, question, temperature=TEMPERATURE, seed=seed)
        self.adapter = said.adapter
        return Answer(question, said.text, said.finish_reason, said.request_id)

    async def rate(self, answer: Answer, value: float) -> None:
        """Also counts."""
        await super().rate(answer, value)
        self.given += 1


@dataclasses.dataclass(frozen=True)
class Greedy:
    """What a greedy answer was, to the byte; ``logprobs`` one a token."""

    question: str
    text: str
    finish_reason: str
    logprobs: tuple[float, ...]


class Bystander:
    """Tenant B: never says what is good. Its answers must stay what they were."""

    def __init__(self, base_url: str, key: str) -> None:
        self.openai = _client(base_url, key)

    async def __aenter__(self) -> Self:
        """Leaving closes its connections."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Whatever happened."""
        await self.openai.close()

    async def look(self) -> list[Greedy]:
        """Greedy answers, one request at a time. Raises RuntimeError when an adapter served one of them."""
        found = []
        for question in questions("unseen")[:PROBES]:
            said = await _streamed(self.openai, question, temperature=0, logprobs=True)
            if said.adapter != "none":
                raise RuntimeError(f"tenant B, which taught nothing, was served by adapter {said.adapter}")
            found.append(Greedy(question, said.text, said.finish_reason, said.logprobs))
        return found


@dataclasses.dataclass(frozen=True)
class _Streamed:
    text: str
    finish_reason: str
    logprobs: tuple[float, ...]
    request_id: str
    adapter: str


def _client(base_url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=600)


async def _streamed(client: openai.AsyncOpenAI, question: str, **options: Any) -> _Streamed:
    """One answer, put together from its chunks."""
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        stream=True,
        **options,
    )
    text, finish_reason, logprobs = "", "", []
    async for chunk in raw.parse():
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish_reason = choice.finish_reason or finish_reason
            if choice.logprobs is not None:
                logprobs += [token.logprob for token in choice.logprobs.content or ()]
    headers = raw.headers
    return _Streamed(text, finish_reason, tuple(logprobs), headers["x-sona-request-id"], headers["x-sona-adapter"])
