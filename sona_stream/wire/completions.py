"""Requests of `/v1/completions`."""

from __future__ import annotations

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
    is_streamed,
    read_user,
    refuse,
    sampling,
)

__all__ = ["decode_completion_request"]

_MAX_LOGPROBS = 20


class _CompletionFields(RequestFields):
    prompt: Any = None
    prompt_embeds: Any = None
    logprobs: Any = None
    echo: Any = None
    suffix: Any = None
    best_of: Any = None


_decoder = msgspec.json.Decoder(_CompletionFields)


def decode_completion_request(body: bytes) -> DecodedRequest:
    """Decode one request; raises `InvalidRequest` naming the field for one that cannot be routed."""
    fields, objections = decode_as(_decoder, body), Objections()
    top = objections.read("logprobs", fields.logprobs, int)
    objections.within("logprobs", top, 0, _MAX_LOGPROBS)
    prompt, query = _question(fields, objections)
    # OpenAI allows 0 here: only the prompt's log-probabilities are wanted then.
    asked = sampling(
        fields, objections, max_tokens=fields.max_tokens, max_tokens_name="max_tokens", least=0, logprobs=top
    )
    _look_over(fields, asked.n, objections)
    return DecodedRequest(
        endpoint="completions",
        model=fields.model,
        prompt=prompt,
        query=query,
        stream=is_streamed(fields),
        include_usage=include_usage(fields, objections),
        sampling=asked,
        constrained=is_constrained(fields),
        user=read_user(fields.user),
        client_ids=client_ids(fields.metadata),
        objections=objections.all,
    )


def _look_over(fields: _CompletionFields, n: int, objections: Objections) -> None:
    objections.unserved("echo", objections.read("echo", fields.echo, bool))
    objections.unserved("suffix", fields.suffix)
    best_of = objections.read("best_of", fields.best_of, int)
    if best_of is not None and best_of > n:
        objections.note("best_of", f"must be at most n, {n}, where a model runs here", best_of)


def _question(fields: _CompletionFields, objections: Objections) -> tuple[str | tuple[int, ...] | None, str]:
    """As `_prompt`. vLLM takes vectors besides, or in place of text and ids: then there is not one prompt."""
    if not fields.prompt_embeds:
        return _prompt(fields.prompt)
    objections.note("prompt_embeds", "must be left out where a model runs here")
    return None, fields.prompt if isinstance(fields.prompt, str) else ""


def _prompt(prompt: Any) -> tuple[str | tuple[int, ...] | None, str]:
    """(the one prompt or None when there are several, the text that routing looks at)."""
    if isinstance(prompt, str):
        return prompt, prompt
    if not isinstance(prompt, list) or not prompt:
        refuse("prompt", "must be a string, a list of token ids, or a non-empty list of those")
    if _is_token_ids(prompt):
        return tuple(prompt), ""
    for i, one in enumerate(prompt):
        if not isinstance(one, str) and not (isinstance(one, list) and one and _is_token_ids(one)):
            refuse(f"prompt[{i}]", "must be a string or a list of token ids >= 0", type(one).__name__)
    if len(prompt) == 1:
        return _prompt(prompt[0])
    return None, next((one for one in prompt if isinstance(one, str)), "")


def _is_token_ids(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 0
