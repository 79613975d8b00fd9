"""Encodes `Delta`s and `Finish` as OpenAI answers, for backends that bring pieces instead of bytes.

Bytes that came from an upstream (``raw``) pass verbatim. A stage that changed an event set its raw to None;
that event is encoded here in the middle of the upstream's stream.
"""

from __future__ import annotations

import time

import msgspec
from msgspec import UNSET

from ..events import Delta, Finish, Head, Piece, Request, Usage
from .answer_structs import (
    Answer,
    ChatChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
    UsageBody,
)
from .sse import DONE, encode_event

__all__ = ["BodyEncoder", "StreamEncoder", "completion_id"]

_encode = msgspec.json.Encoder().encode


def completion_id(request: Request) -> str:
    """The ``id`` inside an answer that is encoded here: ``chatcmpl-<request id>`` or ``cmpl-<request id>``."""
    return ("chatcmpl-" if request.endpoint == "chat.completions" else "cmpl-") + request.id


class StreamEncoder:
    """One streamed answer. Feed every `Delta` and the `Finish`; write what comes back, when it is not empty."""

    def __init__(self, request: Request, head: Head, *, created: int | None = None) -> None:
        self._chat = request.endpoint == "chat.completions"
        self._top = request.sampling.logprobs
        self._include_usage = request.include_usage
        self._started: set[int] = set()
        self._finished: set[int] = set()
        self._offsets: dict[int, int] = {}
        self._n = request.sampling.n
        self._frame = Answer(
            completion_id(request),
            "chat.completion.chunk" if self._chat else "text_completion",
            int(time.time()) if created is None else created,
            head.model,
            [],
            # OpenAI: with include_usage every chunk has the field, null except in the last.
            None if request.include_usage else UNSET,
        )

    def delta(self, delta: Delta) -> bytes:
        """The events of one increment: ``raw`` when it is there, else one event a piece (the role first)."""
        if delta.raw is not None:
            return delta.raw
        return b"".join(self._piece(piece) for piece in delta.pieces)

    def finish(self, finish: Finish) -> bytes:
        """What is still missing: finish reasons, the usage chunk when it was asked for, ``[DONE]``.

        ``Finish.raw`` that is not None says that the end was (or is) in the upstream's own bytes.
        """
        if finish.raw is not None:
            return finish.raw
        missing = [i for i in range(self._n) if i not in self._finished]
        out = [self._piece(Piece(index=i, finish_reason=finish.reason or "stop")) for i in missing]
        if self._include_usage and finish.usage is not None:
            frame = self._frame
            out.append(
                encode_event(
                    _encode(Answer(frame.id, frame.object, frame.created, frame.model, [], _usage(finish.usage)))
                )
            )
        out.append(DONE)
        return b"".join(out)

    def _piece(self, piece: Piece) -> bytes:
        if piece.finish_reason is not None:
            self._finished.add(piece.index)
        frame = self._frame
        logprobs = self._top is not None and bool(piece.logprobs)
        if not (piece.text or piece.reasoning or piece.finish_reason or logprobs):
            return b""
        if not self._chat:
            frame.choices = [TextChoice(piece.index, piece.text, self._text_logprobs(piece), piece.finish_reason)]
            return encode_event(_encode(frame))
        first = b""
        if piece.index not in self._started:
            self._started.add(piece.index)
            frame.choices = [ChunkChoice(piece.index, ChatDelta(role="assistant", content=""))]
            first = encode_event(_encode(frame))
        change = ChatDelta(content=piece.text or None, reasoning_content=piece.reasoning or None)
        chat_logprobs = ChatLogprobs(_chat_logprobs(piece, self._top or 0)) if logprobs else None
        frame.choices = [ChunkChoice(piece.index, change, chat_logprobs, piece.finish_reason)]
        return first + encode_event(_encode(frame))

    def _text_logprobs(self, piece: Piece) -> TextLogprobs | None:
        offset = self._offsets.get(piece.index, 0)
        self._offsets[piece.index] = offset + len(piece.text)
        if self._top is None or not piece.logprobs:
            return None
        return _text_logprobs([piece], self._top, offset)


class BodyEncoder:
    """One answer that is not streamed. Feed every `Delta`; `finish` gives the whole body."""

    def __init__(self, request: Request, head: Head, *, created: int | None = None) -> None:
        self._request = request
        self._model = head.model
        self._created = int(time.time()) if created is None else created
        self._raw: list[bytes] | None = []
        self._pieces: dict[int, list[Piece]] = {}

    def delta(self, delta: Delta) -> None:
        """Take one increment."""
        if delta.raw is None:
            self._raw = None
        elif self._raw is not None:
            self._raw.append(delta.raw)
        for piece in delta.pieces:
            self._pieces.setdefault(piece.index, []).append(piece)

    def finish(self, finish: Finish) -> bytes:
        """The upstream's own body when no stage changed it, else one encoded from the pieces."""
        if self._raw:
            return b"".join(self._raw) + (finish.raw or b"")
        request = self._request
        chat = request.endpoint == "chat.completions"
        indices = sorted({*range(request.sampling.n), *self._pieces})
        reason = finish.reason or "stop"
        build = self._chat_choice if chat else self._text_choice
        answer = Answer(
            completion_id(request),
            "chat.completion" if chat else "text_completion",
            self._created,
            self._model,
            [build(index, self._pieces.get(index, []), reason) for index in indices],  # type: ignore[arg-type]
            UNSET if finish.usage is None else _usage(finish.usage),
        )
        return _encode(answer)

    def _chat_choice(self, index: int, pieces: list[Piece], reason: str) -> ChatChoice:
        reasoning = "".join(piece.reasoning for piece in pieces)
        message = ChatMessage("assistant", "".join(piece.text for piece in pieces))
        if reasoning:
            message.reasoning_content = reasoning
        top = self._request.sampling.logprobs
        logprobs = None
        if top is not None:
            logprobs = ChatLogprobs([token for piece in pieces for token in _chat_logprobs(piece, top)])
        return ChatChoice(index, message, logprobs, _finish_reason(pieces) or reason)

    def _text_choice(self, index: int, pieces: list[Piece], reason: str) -> TextChoice:
        top = self._request.sampling.logprobs
        return TextChoice(
            index,
            "".join(piece.text for piece in pieces),
            None if top is None else _text_logprobs(pieces, top, 0),
            _finish_reason(pieces) or reason,
        )


def _finish_reason(pieces: list[Piece]) -> str | None:
    return next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None)


def _usage(usage: Usage) -> UsageBody:
    return UsageBody(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def _tokens(piece: Piece) -> list[str]:
    """One text a token. A piece of several tokens has one text: the last token carries it."""
    return [""] * (len(piece.logprobs) - 1) + [piece.text] if piece.logprobs else []


def _chat_logprobs(piece: Piece, top: int) -> list[TokenLogprob]:
    out = []
    for i, (token, logprob) in enumerate(zip(_tokens(piece), piece.logprobs, strict=True)):
        best = _best(piece, i, top)
        tops = [TopLogprob(text, value, list(text.encode())) for text, value in best]
        out.append(TokenLogprob(token, logprob, list(token.encode()), tops))
    return out


def _text_logprobs(pieces: list[Piece], top: int, offset: int) -> TextLogprobs:
    out = TextLogprobs([], [], [] if top else None, [])
    for piece in pieces:
        for i, (token, logprob) in enumerate(zip(_tokens(piece), piece.logprobs, strict=True)):
            out.tokens.append(token)
            out.token_logprobs.append(logprob)
            out.text_offset.append(offset)
            if out.top_logprobs is not None:
                out.top_logprobs.append(dict(_best(piece, i, top)))
            offset += len(token)
    return out


def _best(piece: Piece, token: int, top: int) -> list[tuple[str, float]]:
    if not top or token >= len(piece.top_logprobs):
        return []
    return sorted(piece.top_logprobs[token].items(), key=lambda item: -item[1])[:top]
