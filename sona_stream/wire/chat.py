"""Requests of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .decoded_request import DecodedRequest
from .objections import Objections
from .request_fields import (
    RequestFields,
    client_ids,
    decode_as,
    include_usage,
    is_constrained,
    is_given,
    is_streamed,
    read_user,
    refuse,
    sampling,
)

__all__ = ["decode_chat_request", "message_text"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_TOP_LOGPROBS = 20


class _ChatFields(RequestFields):
    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_ChatFields)


def decode_chat_request(body: bytes) -> DecodedRequest:
    """Decode one request; raises `InvalidRequest` naming the field for one that cannot be routed."""
    fields, objections = decode_as(_decoder, body), Objections()
    messages: tuple[Mapping[str, Any], ...] = tuple(fields.messages or ())
    if not messages:
        refuse("messages", "must hold at least one message")
    _look_over(messages, objections)
    newer = fields.max_completion_tokens is not None
    return DecodedRequest(
        endpoint="chat.completions",
        model=fields.model,
        messages=messages,
        query=_query(messages),
        stream=is_streamed(fields),
        include_usage=include_usage(fields, objections),
        sampling=sampling(
            fields,
            objections,
            max_tokens=fields.max_completion_tokens if newer else fields.max_tokens,
            max_tokens_name="max_completion_tokens" if newer else "max_tokens",
            least=1,
            logprobs=_logprobs(fields, objections),
        ),
        constrained=is_constrained(fields) or is_given(fields.tools) or is_given(fields.functions),
        user=read_user(fields.user),
        client_ids=client_ids(fields.metadata),
        objections=objections.all,
    )


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message: its content, or the text parts of a content list, one a line."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(part for part in parts if isinstance(part, str))


def _query(messages: tuple[Mapping[str, Any], ...]) -> str:
    last_user = next((m for m in reversed(messages) if m.get("role") == "user"), messages[-1])
    return message_text(last_user)


def _look_over(messages: Iterable[Mapping[str, Any]], objections: Objections) -> None:
    for i, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            objections.note(f"messages[{i}].role", f"must be one of {', '.join(ROLES)}", role if role else "none")
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                if not isinstance(part, dict | str):
                    objections.note(f"messages[{i}].content[{j}]", "must be an object", type(part).__name__)
        elif content is not None and not isinstance(content, str):
            must = "must be a string, a list of parts, or null"
            objections.note(f"messages[{i}].content", must, type(content).__name__)


def _logprobs(fields: _ChatFields, objections: Objections) -> int | None:
    wanted = objections.read("logprobs", fields.logprobs, bool)
    top = objections.read("top_logprobs", fields.top_logprobs, int)
    objections.within("top_logprobs", top, 0, _MAX_TOP_LOGPROBS)
    if wanted:
        return top or 0
    if top:
        objections.note("top_logprobs", "needs logprobs to be true")
    return None
