"""Mappings to structs with errors that name the full path, the value, and the nearest known field."""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from ..errors import ConfigError

__all__ = ["convert"]

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)


def convert(data: object, kind: type[T], path: str) -> T:
    """``data`` as a ``kind``. Raises `ConfigError`. Numbers may be strings, as they come from the environment."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"`{path}` must be a mapping of settings, not {_shown(data)}")
    _check_known(data, kind, path)
    _check_finite(data, path)
    data = _worded(data, kind)
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(error, data, path) from None


def _explained(error: msgspec.ValidationError, data: object, path: str) -> ConfigError:
    match = _AT.match(str(error))
    what, where = (match["what"], match["path"] or "") if match else (str(error), "")
    value = _value_at(data, where)
    got = "" if value is None or isinstance(value, Mapping | list) else f" (it is {_shown(value)})"
    return ConfigError(f"`{path}{where}`: {what[:1].lower()}{what[1:]}{got}")


def _value_at(data: object, where: str) -> object:
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", where):
        if "key" in name or index == "...":
            return None  # might be a secret, or cannot be followed
        try:
            data = data[int(index)] if index else data[name]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_known(data: object, kind: Any, path: str) -> None:
    """Unknown fields at any depth, before anything else: a typo is the likeliest mistake."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(data, Mapping):
            return
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        for name, value in data.items():
            if name not in fields:
                raise ConfigError(f"`{path}.{name}` is not a setting{_hint(name, list(fields))}")
            _check_known(value, fields[name], f"{path}.{name}")
        return
    for part, inner in _items(data, kind):
        _check_known(part[1], inner, f"{path}{part[0]}")


def _items(data: object, kind: Any) -> Iterator[tuple[tuple[str, object], Any]]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(data, list):
        yield from (((f"[{i}]", value), arguments[0]) for i, value in enumerate(data))
    elif origin is dict and isinstance(data, Mapping):
        yield from (((f".{name}", value), arguments[1]) for name, value in data.items())


def _worded(data: object, kind: Any) -> object:
    """A bare ``off`` or ``on``, which YAML 1.1 reads as a boolean, as the word where the field knows that word."""
    if isinstance(data, bool):
        word = "on" if data else "off"
        return word if word in _words(kind) else data
    if isinstance(data, Mapping) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        return {name: _worded(value, fields[name]) for name, value in data.items()}
    items = [_worded(part[1], inner) for part, inner in _items(data, kind)]
    if not items:
        return data
    return dict(zip(data, items, strict=True)) if isinstance(data, Mapping) else items


def _words(kind: Any) -> tuple[object, ...]:
    """Of a Literal, also of one in a union; none where a boolean is a value, too."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return arguments
    if origin not in (types.UnionType, typing.Union) or bool in arguments:
        return ()
    return tuple(word for one in arguments for word in _words(one))


def _hint(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f" (known here: {', '.join(sorted(known))})"


def _check_finite(data: object, path: str) -> None:
    if isinstance(data, float) and not math.isfinite(data):
        raise ConfigError(f"`{path}` must be a finite number, not {data}")
    if isinstance(data, Mapping):
        for name, value in data.items():
            _check_finite(value, f"{path}.{name}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _check_finite(value, f"{path}[{index}]")
