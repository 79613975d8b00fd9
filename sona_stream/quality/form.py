"""Whether a constrained answer has the form that its request demands: JSON that parses and fits its schema, tool
calls that name a tool and whose arguments do.

Of a schema these are looked at: `type`, `required`, `properties`, `items`, `enum`, `const`; the rest is taken as
met. Of grammars and patterns nothing can be said here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from ..events import Delta, Finish, Request

__all__ = ["FormScorer"]

_LONGEST = 1 << 20
"""Characters of one answer beyond which nothing is said."""
_DEEPEST = 16
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class _Demand(Protocol):
    def met(self, text: str, calls: Mapping[int, tuple[str, str]]) -> float | None: ...


class _Json:
    """The text is JSON after a schema."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    def met(self, text: str, calls: Mapping[int, tuple[str, str]]) -> float | None:
        return None if calls else float(_parses(text, self._schema))


class _Tools:
    """Calls name known tools with arguments after their parameters; text instead of a call says nothing, unless
    a call was required.
    """

    def __init__(self, parameters: Mapping[str, Any], *, required: bool, otherwise: _Demand | None) -> None:
        self._parameters, self._required, self._otherwise = parameters, required, otherwise

    def met(self, text: str, calls: Mapping[int, tuple[str, str]]) -> float | None:
        if calls:
            return float(
                all(name in self._parameters and self._fits(name, given) for name, given in calls.values())
            )
        if self._required:
            return 0.0
        return None if self._otherwise is None else self._otherwise.met(text, calls)

    def _fits(self, name: str, arguments: str) -> bool:
        return _parses(arguments or "{}", self._parameters[name])


class _Scoring:
    __slots__ = ("_calls", "_demand", "_size", "_text")

    def __init__(self, demand: _Demand | None) -> None:
        self._demand = demand
        self._text: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, tuple[str, list[str]]]] = {}
        self._size = 0

    def push(self, delta: Delta) -> None:
        if self._demand is None or self._size > _LONGEST:
            return
        for piece in delta.pieces:
            self._text.setdefault(piece.index, []).append(piece.text)
            self._size += len(piece.text)
            for part in piece.calls:
                calls = self._calls.setdefault(piece.index, {})
                name, arguments = calls.get(part.index, ("", []))
                calls[part.index] = (part.name or name, [*arguments, part.arguments])
                self._size += len(part.arguments)

    def finish(self, finish: Finish | None) -> float | None:
        """Share of the choices whose form is right; None where nothing was demanded, and of a broken answer."""
        if self._demand is None or finish is None or self._size > _LONGEST:
            return None
        told = []
        for index, text in self._text.items():
            calls = {at: (name, "".join(parts)) for at, (name, parts) in self._calls.get(index, {}).items()}
            told.append(self._demand.met("".join(text), calls))
        known = [one for one in told if one is not None]
        return sum(known) / len(known) if known else None


class FormScorer:
    """1 for a constrained answer of the right form, 0 for another one; no verdict on free text. Shown, not counted:
    its weight is 0.
    """

    name = "form"
    weight = 0.0

    def begin(self, request: Request) -> _Scoring:
        """A fresh judgement."""
        return _Scoring(_demand_of(request) if request.constrained else None)


def _demand_of(request: Request) -> _Demand | None:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    otherwise = _json_demand(body)
    functions = [one.get("function") for one in _dicts(body.get("tools"))] + _dicts(body.get("functions"))
    parameters = {
        one["name"]: one.get("parameters") for one in functions if isinstance(one, dict) and "name" in one
    }
    if not parameters:
        return otherwise
    choice = body.get("tool_choice", body.get("function_call"))
    return _Tools(parameters, required=choice == "required" or isinstance(choice, dict), otherwise=otherwise)


def _json_demand(body: Mapping[str, Any]) -> _Demand | None:
    form, structured = body.get("response_format"), body.get("structured_outputs")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        described = form.get("json_schema")
        return _Json(described.get("schema") if isinstance(described, dict) else None)
    if isinstance(form, dict) and form.get("type") == "json_object":
        return _Json({"type": "object"})
    schema = body.get("guided_json") or (structured.get("json") if isinstance(structured, dict) else None)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            return None
    return None if schema is None else _Json(schema)


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _parses(text: str, schema: Any) -> bool:
    try:
        return _fits(json.loads(text), schema, 0)
    except (ValueError, RecursionError):
        return False


def _fits(value: Any, schema: Any, depth: int) -> bool:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return True
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(options := schema.get("enum"), list) and value not in options:
        return False
    if not _is_of(value, schema.get("type")):
        return False
    if isinstance(value, dict):
        return _object_fits(value, schema, depth)
    items = schema.get("items")
    return not isinstance(value, list) or all(_fits(one, items, depth + 1) for one in value)


def _object_fits(value: Mapping[str, Any], schema: Mapping[str, Any], depth: int) -> bool:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and any(name not in value for name in required):
        return False
    known = properties if isinstance(properties, dict) else {}
    return all(_fits(one, known.get(name), depth + 1) for name, one in value.items())


def _is_of(value: Any, kinds: Any) -> bool:
    names = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(names, list):
        return True
    whole = isinstance(value, float) and value.is_integer()
    for name in names:
        if name not in _KINDS:
            return True
        right = isinstance(value, _KINDS[name]) or (name == "integer" and whole)
        if right and (name == "boolean" or not isinstance(value, bool)):
            return True
    return False
