"""Reads what an upstream answers, beside the bytes that are forwarded: pieces, usage, id, end, errors.

Tolerant on purpose: an answer belongs to the client, and a field of a shape nobody expected must not stop it.
What cannot be read at all ends the reading (`broken`), never the forwarding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..events import CallPart, Piece, Usage
from .sse import DONE_DATA

__all__ = ["AnswerParser"]


class _Text(msgspec.Struct, gc=False):
    """A chat delta or message. Reasoning goes by two names: DeepSeek's and vLLM's, and OpenRouter's."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Text | None = None
    message: _Text | None = None
    text: Any = None
    finish_reason: Any = None
    logprobs: Any = None
    token_ids: Any = None
    prompt_token_ids: Any = None


class _Chunk(msgspec.Struct, gc=False):
    id: Any = None
    object: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    prompt_token_ids: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class AnswerParser:
    """One answer, of either endpoint, streamed or not: feed `events` or one `body`."""

    __slots__ = (
        "_finished",
        "_seen",
        "broken",
        "completion_id",
        "data_events",
        "done",
        "error",
        "prompt_ids",
        "reason",
        "usage",
    )

    def __init__(self) -> None:
        self.completion_id: str | None = None
        self.usage: Usage | None = None
        self.reason: str | None = None
        """Of the first choice; of another one when the first has none."""
        self.prompt_ids: tuple[int, ...] = ()
        """Of the first choice's prompt, where the upstream tells them (vLLM's `return_token_ids`)."""
        self.error: bytes | None = None
        """The first error event, as it came."""
        self.done = False
        """``[DONE]`` was seen."""
        self.data_events = 0
        """Events seen that are data of an answer: neither errors nor ``[DONE]``."""
        self.broken = False
        """Something could not be read; nothing after it was."""
        self._seen: set[int] = set()
        self._finished: set[int] = set()

    @property
    def has_choices(self) -> bool:
        """Whether any choice was seen at all."""
        return bool(self._seen)

    @property
    def all_finished(self) -> bool:
        """Whether every choice that was seen had its ``finish_reason``."""
        return bool(self._seen) and self._seen == self._finished

    def events(self, events: Sequence[bytes]) -> tuple[Piece, ...]:
        """The pieces in the data of these stream events."""
        if not events:
            return ()
        pieces: list[Piece] = []
        for data in events:
            if data.strip() == DONE_DATA:
                self.done = True
            elif data and not self.broken:
                self._read(data, pieces)
        return tuple(pieces)

    def error_status(self) -> int | None:
        """The HTTP status that the error event names in its ``code`` or ``status``, if it is one."""
        try:
            told = msgspec.json.decode(self.error or b"null")
        except msgspec.DecodeError:
            return None
        error = told.get("error") if isinstance(told, dict) else None
        for source in (error, told):
            if isinstance(source, dict):
                for key in ("code", "status"):
                    value = source.get(key)
                    if isinstance(value, int) and 400 <= value <= 599:
                        return value
        return None

    def body(self, body: bytes) -> tuple[Piece, ...]:
        """The pieces of an answer that was not streamed, one a choice."""
        pieces: list[Piece] = []
        self._read(body, pieces)
        return tuple(pieces)

    def _read(self, data: bytes, pieces: list[Piece]) -> None:
        try:
            chunk = _decode(data)
            if chunk.error or chunk.object == "error":
                if self.error is None:
                    self.error = data
                return
            self._take(chunk, pieces)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            self.broken = True
        self.data_events += 1

    def _take(self, chunk: _Chunk, pieces: list[Piece]) -> None:
        if self.completion_id is None and isinstance(chunk.id, str):
            self.completion_id = chunk.id
        if chunk.usage is not None:
            self.usage = _usage(chunk.usage) or self.usage
        if chunk.prompt_token_ids is not None and not self.prompt_ids:
            self.prompt_ids = _token_ids(chunk.prompt_token_ids)
        for choice in chunk.choices or ():
            piece = self._piece(choice)
            if piece is not None:
                pieces.append(piece)

    def _piece(self, choice: _Choice) -> Piece | None:
        index = choice.index
        self._seen.add(index)
        if choice.prompt_token_ids is not None and index == 0 and not self.prompt_ids:
            self.prompt_ids = _token_ids(choice.prompt_token_ids)
        text, reasoning = "", ""
        calls: tuple[CallPart, ...] = ()
        said = choice.delta or choice.message
        if said is not None:
            text = _plain(said.content)
            reasoning = _plain(said.reasoning_content) or _plain(said.reasoning)
            if said.tool_calls is not None or said.function_call is not None:
                calls = _calls(said.tool_calls, said.function_call)
        elif isinstance(choice.text, str):
            text = choice.text
        reason = choice.finish_reason
        if not isinstance(reason, str) or not reason:
            reason = None
        else:
            self._finished.add(index)
            if self.reason is None or index == 0:
                self.reason = reason
        if choice.logprobs is None and choice.token_ids is None:
            if not text and not reasoning and reason is None and not calls:
                return None
            return Piece(index=index, text=text, reasoning=reasoning, finish_reason=reason, calls=calls)
        logprobs, tops = _logprobs(choice.logprobs)
        ids = _token_ids(choice.token_ids)
        return Piece(
            index=index,
            text=text,
            reasoning=reasoning,
            token_ids=ids,
            logprobs=logprobs,
            top_logprobs=tops,
            finish_reason=reason,
            calls=calls,
        )


def _calls(tools: Any, function: Any) -> tuple[CallPart, ...]:
    """Of OpenAI's `tool_calls`, and of the `function_call` before them."""
    parts = [one for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []
    found = [(one.get("index", place), one.get("function")) for place, one in enumerate(parts)]
    if function is not None:
        found.append((0, function))
    return tuple(
        CallPart(
            index=index if type(index) is int else 0,
            name=_plain(called.get("name")),
            arguments=_plain(called.get("arguments")),
        )
        for index, called in found
        if isinstance(called, dict)
    )


def _plain(content: Any) -> str:
    """Text, or the text parts of a list of parts (Mistral's thinking models)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _token_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        return ()
    return tuple(ids)


def _logprobs(logprobs: Any) -> tuple[tuple[float, ...], tuple[Mapping[str, float], ...]]:
    """(one natural log-probability a token, the best alternatives of each) of either endpoint's form."""
    if not isinstance(logprobs, dict):
        return (), ()
    tops: Sequence[Mapping[str, float]]
    if isinstance(content := logprobs.get("content"), list):
        tokens = [token for token in content if isinstance(token, dict)]
        values = [token.get("logprob") for token in tokens]
        tops = [_tops(token.get("top_logprobs")) for token in tokens]
    elif isinstance(plain := logprobs.get("token_logprobs"), list):
        values = plain
        best = logprobs.get("top_logprobs")
        tops = [_top_table(one) for one in best] if isinstance(best, list) else []
    else:
        return (), ()
    known = tuple(float(value) for value in values if isinstance(value, int | float))
    if len(known) < len(values):  # an echoed prompt's first token has none: alternatives no longer line up
        return known, ()
    return known, tuple(tops) if any(tops) else ()


def _tops(top: Any) -> Mapping[str, float]:
    if not isinstance(top, list):
        return {}
    return {
        one["token"]: float(one["logprob"])
        for one in top
        if isinstance(one, dict)
        and isinstance(one.get("token"), str)
        and isinstance(one.get("logprob"), int | float)
    }


def _top_table(top: Any) -> Mapping[str, float]:
    if not isinstance(top, dict):
        return {}
    return {str(token): float(value) for token, value in top.items() if isinstance(value, int | float)}


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=completion)
