"""The body of `POST /v1/feedback`: one of three forms, each turned into quality in [0, 1] or a correction."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from ..config.settings import MetricSettings
from ..errors import InvalidRequest
from ..wire import read_user

__all__ = ["Judgement", "parse_judgement"]

_FIELDS = ("request_id", "rating", "metric_name", "value", "correction", "idempotency_key", "user")
_FORMS = "give exactly one of `rating` (-1 to 1, true or false), `metric_name` with `value`, or `correction`"
MAX_ID = 256
MAX_CORRECTION = 1 << 20
"""Characters: far beyond any context, and still no burden to tokenize."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was said, checked; fields as in `events.Feedback`."""

    named: str
    """The id as the client gave it: ours, the completion's, or one it had sent."""
    kind: Literal["rating", "metric", "correction"]
    quality: float | None = None
    metric_name: str | None = None
    value: float | None = None
    correction: str | None = None
    idempotency_key: str | None = None
    user: str | None = None


def parse_judgement(
    body: Mapping[str, Any], metrics: Mapping[str, MetricSettings], header_key: str | None
) -> Judgement:
    """Raises `InvalidRequest` naming the field and its limit. ``header_key``: the header `Idempotency-Key`."""
    for name in body:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(_FIELDS)})"
            _refuse(name[:80], f"{name[:80]!r} is not a field of feedback{hint}")
    given = {name: value for name, value in body.items() if value is not None}
    common = {
        "named": _text(given, "request_id", MAX_ID, required=True),
        "idempotency_key": _idempotency_key(given, header_key),
        "user": read_user(body.get("user")),
    }
    forms = [name for name in ("rating", "metric_name", "correction") if name in given]
    if len(forms) != 1:
        _refuse(forms[1] if forms else "rating", f"{_FORMS}, not {' and '.join(forms) or 'none'}")
    if "value" in given and forms != ["metric_name"]:
        _refuse("value", f"value belongs to a metric_name; {_FORMS}")
    if forms == ["rating"]:
        rating = _number(given, "rating", -1.0, 1.0, of_truth=(-1.0, 1.0))
        return Judgement(kind="rating", quality=(rating + 1) / 2, value=rating, **common)
    if forms == ["correction"]:
        return Judgement(
            kind="correction", correction=_text(given, "correction", MAX_CORRECTION, required=True), **common
        )
    return _metric(given, metrics, common)


def _metric(given: Mapping[str, Any], metrics: Mapping[str, MetricSettings], common: dict[str, Any]) -> Judgement:
    name = _text(given, "metric_name", MAX_ID, required=True)
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        _refuse("metric_name", f"the metric {name!r} is not declared in `sona.metrics` (declared: {known})")
    metric = metrics[name]
    if "value" not in given:
        _refuse("value", f"the metric {name!r} needs a value from {metric.min:g} to {metric.max:g}")
    value = _number(given, "value", metric.min, metric.max, of_truth=(metric.min, metric.max))
    share = (value - metric.min) / (metric.max - metric.min)
    quality = share if metric.direction == "higher_is_better" else 1 - share
    return Judgement(kind="metric", quality=quality, metric_name=name, value=value, **common)


def _idempotency_key(given: Mapping[str, Any], header_key: str | None) -> str | None:
    key: str | None = _text(given, "idempotency_key", MAX_ID)
    if header_key is not None and len(header_key) > MAX_ID:
        _refuse("idempotency_key", f"the header Idempotency-Key must have at most {MAX_ID} characters")
    if key is not None and header_key is not None and key != header_key:
        _refuse("idempotency_key", "idempotency_key and the header Idempotency-Key differ")
    return key if key is not None else header_key


def _text(given: Mapping[str, Any], name: str, most: int, *, required: bool = False) -> Any:
    value = given.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value.strip():
        _refuse(name, f"{name} must be a text that is not empty")
    if len(value) > most:
        _refuse(name, f"{name} must have at most {most} characters, not {len(value)}")
    return value


def _number(
    given: Mapping[str, Any], name: str, low: float, high: float, *, of_truth: tuple[float, float]
) -> float:
    value = given[name]
    if isinstance(value, bool):
        return of_truth[value]
    if not isinstance(value, int | float) or not low <= value <= high:
        _refuse(name, f"{name} must be a number from {low:g} to {high:g}, not {str(value)[:80]}")
    return float(value)


def _refuse(param: str, message: str) -> NoReturn:
    raise InvalidRequest(message, param=param)
