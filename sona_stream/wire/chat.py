"""Requests of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .decoded_request import DecodedRequest
from .request_fields import (
    RequestFields,
    client_ids,
    decode_as,
    include_usage,
    is_constrained,
    is_given,
    refuse,
    sampling,
)

__all__ = ["decode_chat_request", "message_text"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_TOP_LOGPROBS = 20


class _ChatFields(RequestFields):
    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_ChatFields)


def decode_chat_request(body: bytes) -> DecodedRequest:
    """Decode and check one request; raises `InvalidRequest` naming the field and its limit."""
    fields = decode_as(_decoder, body)
    messages = tuple(_checked(fields.messages or ()))
    if not messages:
        refuse("messages", "must hold at least one message")
    newer = fields.max_completion_tokens is not None
    return DecodedRequest(
        endpoint="chat.completions",
        model=fields.model,
        messages=messages,
        query=_query(messages),
        stream=bool(fields.stream),
        include_usage=include_usage(fields),
        sampling=sampling(
            fields,
            max_tokens=fields.max_completion_tokens if newer else fields.max_tokens,
            max_tokens_name="max_completion_tokens" if newer else "max_tokens",
            least=1,
            logprobs=_logprobs(fields),
        ),
        constrained=is_constrained(fields) or is_given(fields.tools) or is_given(fields.functions),
        user=fields.user,
        client_ids=client_ids(fields.metadata),
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
    last_user = next((m for m in reversed(messages) if m["role"] == "user"), messages[-1])
    return message_text(last_user)


def _checked(messages: Iterable[dict[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for i, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            refuse(f"messages[{i}].role", f"must be one of {', '.join(ROLES)}", role if role else "none")
        content = message.get("content")
        if isinstance(content, list):
            for j, part in enumerate(content):
                if not isinstance(part, dict | str):
                    refuse(f"messages[{i}].content[{j}]", "must be an object", type(part).__name__)
        elif content is not None and not isinstance(content, str):
            refuse(f"messages[{i}].content", "must be a string, a list of parts, or null", type(content).__name__)
        yield message


def _logprobs(fields: _ChatFields) -> int | None:
    top = fields.top_logprobs
    if top is not None and not 0 <= top <= _MAX_TOP_LOGPROBS:
        refuse("top_logprobs", f"must be between 0 and {_MAX_TOP_LOGPROBS}", top)
    if fields.logprobs:
        return top or 0
    if top:
        refuse("top_logprobs", "needs logprobs to be true")
    return None
