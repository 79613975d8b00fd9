"""Fields that both endpoints' requests share: their types, their limits, and the errors that name them.

Only what this program reads is declared; every other field stays in the body and reaches the upstream untouched. An
error is what leaves nothing to route, or nobody to learn for; about the rest see `Objections`.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from ..errors import InvalidRequest
from ..events import Sampling
from .model_name import check_model
from .objections import Objections, complaint

__all__ = [
    "RequestFields",
    "StreamOptions",
    "client_ids",
    "decode_as",
    "include_usage",
    "is_constrained",
    "is_given",
    "is_streamed",
    "read_user",
    "refuse",
    "sampling",
]

_ABSENT = msgspec.Raw()
_MAX_TOKENS = 1 << 31
_MAX_CHOICES = 128
_MAX_ID_LENGTH = 256
_ID_KEYS = ("request_id", "inference_id", "generation_id", "id")
_AT = re.compile(r"^(.*) - at `\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `([^`]*)`")


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class RequestFields(msgspec.Struct):
    """The shared part. Names and meanings are OpenAI's; the ``guided_*`` family is vLLM's."""

    model: str
    stream: Any = None
    stream_options: Any = None
    temperature: Any = None
    top_p: Any = None
    n: Any = None
    stop: Any = None
    seed: Any = None
    logit_bias: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    max_tokens: Any = None
    user: Any = None
    metadata: Any = None
    response_format: Any = None
    guided_json: msgspec.Raw = _ABSENT
    guided_regex: msgspec.Raw = _ABSENT
    guided_choice: msgspec.Raw = _ABSENT
    guided_grammar: msgspec.Raw = _ABSENT
    structured_outputs: msgspec.Raw = _ABSENT


Fields = TypeVar("Fields", bound=RequestFields)


def decode_as(decoder: msgspec.json.Decoder[Fields], body: bytes) -> Fields:
    """The typed fields of a JSON body; every fault becomes an `InvalidRequest` that names the field."""
    try:
        fields = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is not valid JSON: it is nested too deeply") from None
    check_model(fields.model)
    return fields


def _invalid(message: str) -> InvalidRequest:
    at, missing = _AT.match(message), _MISSING.search(message)
    path = at.group(2) if at else ""
    if missing:
        param = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return InvalidRequest(f"{param} is required", param=param)
    if not at or not path:
        return InvalidRequest(f"the body must be a JSON object: {message}")
    return InvalidRequest(f"{path}: {at.group(1)}", param=path)


def refuse(param: str, must: str, got: object = None) -> NoReturn:
    """Raise the error for one field: ``<param> <must>, got <got>``."""
    raise InvalidRequest(complaint(param, must, got), param=param)


def sampling(
    fields: RequestFields,
    objections: Objections,
    *,
    max_tokens: Any,
    max_tokens_name: str,
    least: int,
    logprobs: int | None,
) -> Sampling:
    """Gathers what can be read; what is beyond a limit of OpenAI's reference is noted."""
    temperature = objections.read("temperature", fields.temperature, float)
    top_p = objections.read("top_p", fields.top_p, float)
    presence = objections.read("presence_penalty", fields.presence_penalty, float)
    frequency = objections.read("frequency_penalty", fields.frequency_penalty, float)
    n = objections.read("n", fields.n, int)
    limit = objections.read(max_tokens_name, max_tokens, int)
    objections.within("temperature", temperature, 0, 2)
    objections.within("top_p", top_p, 0, 1)
    objections.within("presence_penalty", presence, -2, 2)
    objections.within("frequency_penalty", frequency, -2, 2)
    objections.within("n", n, 1, _MAX_CHOICES)
    objections.within(max_tokens_name, limit, least, _MAX_TOKENS)
    objections.unserved("logit_bias", fields.logit_bias)
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        max_tokens=limit,
        stop=_stops(fields.stop, objections),
        seed=objections.read("seed", fields.seed, int),
        n=1 if n is None else min(max(n, 1), _MAX_CHOICES),
        presence_penalty=presence or 0.0,
        frequency_penalty=frequency or 0.0,
        logprobs=logprobs,
    )


def _stops(stop: Any, objections: Objections) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(objections.read("stop", stop, list[str]) or ())


def read_user(user: Any) -> str | None:
    """A body's `user`; some count theirs. Raises `InvalidRequest` for what is neither text nor a whole number."""
    try:
        found = msgspec.convert(user, str | int | None)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"user: {error}", param="user") from None
    return None if found is None else str(found)


def is_streamed(fields: RequestFields) -> bool:
    """Whether events were asked for. Raises `InvalidRequest` for what does not say so: it is the answer's form."""
    try:
        return bool(msgspec.convert(fields.stream, bool | None, strict=False))
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"stream: {error}", param="stream") from None


def include_usage(fields: RequestFields, objections: Objections) -> bool:
    """Whether the usage chunk was asked for; it exists in streams only."""
    options = objections.read("stream_options", fields.stream_options, StreamOptions)
    return bool(options is not None and options.include_usage and is_streamed(fields))


def is_constrained(fields: RequestFields) -> bool:
    """Whether the answer's form is bound by a schema, a grammar or a list of choices."""
    form = fields.response_format
    if isinstance(form, dict) and form.get("type", "text") != "text":
        return True
    return any(
        is_given(raw)
        for raw in (
            fields.guided_json,
            fields.guided_regex,
            fields.guided_choice,
            fields.guided_grammar,
            fields.structured_outputs,
        )
    )


def is_given(raw: msgspec.Raw) -> bool:
    """Whether a field is there and is neither null nor an empty list."""
    value = bytes(raw)
    return bool(value) and value != b"null" and not (value[0] == 0x5B and not value[1:-1].strip())


def client_ids(metadata: Any) -> tuple[str, ...]:
    """Ids for this request in the body's ``metadata``: strings under `request_id`, `inference_id`,
    `generation_id` or `id`, at most 256 characters.
    """
    if not isinstance(metadata, dict):
        return ()
    found = (metadata.get(key) for key in _ID_KEYS)
    ids = (value for value in found if isinstance(value, str) and 0 < len(value) <= _MAX_ID_LENGTH)
    return tuple(dict.fromkeys(ids))
