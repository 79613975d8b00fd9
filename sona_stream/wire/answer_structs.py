"""The JSON of answers that are encoded here, for backends that bring pieces instead of bytes."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "Answer",
    "ChatChoice",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "ChunkChoice",
    "TextChoice",
    "TextLogprobs",
    "TokenLogprob",
    "TopLogprob",
    "UsageBody",
]


class UsageBody(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatMessage(msgspec.Struct):
    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class TextChoice(msgspec.Struct):
    """Of `text_completion`, streamed or not."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Answer(msgspec.Struct):
    """The frame of all four kinds of answer."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice] | list[ChatChoice] | list[TextChoice]
    usage: UsageBody | UnsetType | None = UNSET
