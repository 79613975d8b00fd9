"""Rows of trajectories: SQL and the mapping to `events.Trajectory`. What may be kept was decided before."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..events import AdapterRef, RouteDecision, Sampling, Score, Trajectory, Usage
from .pending import Entry
from .privacy import impersonal_model, text_bytes, text_from

__all__ = ["find", "insert", "named", "newest"]

T = TypeVar("T")
_log = logging.getLogger("sona_stream.store")

_PLAIN = (
    "key_id",
    "endpoint",
    "model",
    "finish_reason",
    "learn",
    "no_capture",
    "outcome",
    "ttft_s",
    "duration_s",
)
_NESTED: Mapping[str, type[Any]] = {
    "route": RouteDecision,
    "adapter": AdapterRef,
    "sampling": Sampling,
    "score": Score,
    "usage": Usage,
}
_SELECT = (
    "SELECT t.request_id, t.tenant, t.started_at, t.facts, t.user, t.ids, t.embedding, t.prompt_ids, "
    "t.token_ids, x.query, x.body, x.answer, x.stop FROM trajectories t LEFT JOIN trajectory_texts x USING (row) "
)


def insert(connection: sqlite3.Connection, entries: Iterable[Entry]) -> int:
    """Write entries, the same request replacing its older row. Returns how many could not be encoded."""
    refused = 0
    for entry in entries:
        try:
            columns = _columns(entry)
        except (ValueError, TypeError, OverflowError) as error:
            refused += 1
            _log.error("trajectory %s cannot be stored: %s", entry.trajectory.request_id, error)
            continue
        _write(connection, entry, columns)
    return refused


def find(connection: sqlite3.Connection, request_id: str, tenant: str | None) -> Trajectory | None:
    """The row of this request; without a tenant the newest of all tenants'."""
    row = connection.execute(
        _SELECT + "WHERE t.request_id = ?1 AND (?2 IS NULL OR t.tenant = ?2) ORDER BY t.stored_at DESC LIMIT 1",
        (request_id, tenant),
    ).fetchone()
    return None if row is None else _trajectory(row)


def newest(connection: sqlite3.Connection, limit: int, after: float) -> list[Trajectory]:
    """The newest `limit` with started_at > after, newest first."""
    rows = connection.execute(
        _SELECT + "WHERE t.started_at > ? ORDER BY t.started_at DESC, t.row DESC LIMIT ?", (after, limit)
    )
    return [_trajectory(row) for row in rows]


def named(connection: sqlite3.Connection, any_id: str, name: bytes, tenant: str) -> list[str]:
    """Request ids of this tenant that have this id or name."""
    rows = connection.execute(
        "SELECT request_id FROM trajectories WHERE tenant = ?1 AND request_id = ?2 UNION "
        "SELECT t.request_id FROM request_names n JOIN trajectories t USING (row) "
        "WHERE n.tenant = ?1 AND n.name = ?3",
        (tenant, any_id, name),
    )
    return [row[0] for row in rows]


def _columns(entry: Entry) -> tuple[Any, ...]:
    one = entry.trajectory
    facts: dict[str, Any] = {name: getattr(one, name) for name in _PLAIN}
    for name in _NESTED:
        value = getattr(one, name)
        facts[name] = None if value is None else _fields(value)
    facts["requested_model"] = impersonal_model(one)
    facts["sampling"]["stop"] = ()  # text: beside the text
    return (
        one.tenant,
        one.request_id,
        float(one.started_at),
        entry.stored_at,
        json.dumps(facts, default=float),
        text_bytes(one.user),
        _client_ids(one),
        None if one.embedding is None else np.asarray(one.embedding, dtype="<f4").tobytes(),
        _pack(one.prompt_ids),
        _pack(one.token_ids),
    )


def _client_ids(one: Trajectory) -> str | None:
    """What the client chose itself, apart from the facts so that it can be removed."""
    ids: dict[str, Any] = {}
    if one.client_ids:
        ids["client"] = one.client_ids
    if one.completion_id:
        ids["completion"] = one.completion_id
    if one.requested_model != impersonal_model(one):
        ids["model"] = one.requested_model
    return json.dumps(ids) if ids else None


def _write(connection: sqlite3.Connection, entry: Entry, columns: tuple[Any, ...]) -> None:
    one = entry.trajectory
    connection.execute("DELETE FROM trajectories WHERE tenant = ? AND request_id = ?", columns[:2])
    row = connection.execute(
        "INSERT INTO trajectories (tenant, request_id, started_at, stored_at, facts, user, ids, embedding, "
        "prompt_ids, token_ids) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        columns,
    ).lastrowid
    texts = (text_bytes(one.query), one.body, text_bytes(one.answer))
    stop = json.dumps(one.sampling.stop) if one.sampling.stop else None
    if any(text is not None for text in (*texts, stop)):
        connection.execute("INSERT INTO trajectory_texts VALUES (?, ?, ?, ?, ?)", (row, *texts, stop))
    connection.executemany(
        "INSERT INTO request_names VALUES (?, ?, ?)", [(one.tenant, name, row) for name in entry.names]
    )


def _trajectory(row: tuple[Any, ...]) -> Trajectory:
    (
        request_id,
        tenant,
        started_at,
        facts,
        user,
        ids,
        embedding,
        prompt_ids,
        token_ids,
        query,
        body,
        answer,
        stop,
    ) = row
    decoded = json.loads(facts)
    names: dict[str, Any] = json.loads(ids) if ids else {}
    values: dict[str, Any] = {name: decoded[name] for name in _PLAIN if name in decoded}
    decoded["sampling"]["stop"] = json.loads(stop) if stop else ()
    nested = {name: _build(kind, decoded.get(name)) for name, kind in _NESTED.items()}
    values |= {name: value for name, value in nested.items() if value is not None}
    return Trajectory(
        request_id=request_id,
        tenant=tenant,
        user=text_from(user),
        requested_model=names.get("model", decoded["requested_model"]),
        client_ids=tuple(names.get("client", ())),
        completion_id=names.get("completion"),
        embedding=None if embedding is None else _unpack(embedding, "<f4", np.float32),
        prompt_ids=tuple(_unpack(prompt_ids, "<i4", np.int32).tolist()),
        token_ids=tuple(_unpack(token_ids, "<i4", np.int32).tolist()),
        query=text_from(query),
        body=body,
        answer=text_from(answer),
        started_at=started_at,
        **values,
    )


def _fields(value: Any) -> dict[str, Any]:
    """Field by field: half the time of `dataclasses.asdict`, whose deep copies are not needed here."""
    named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: dict(item) if isinstance(item, Mapping) else item for name, item in named.items()}


def _build(kind: type[T], data: Mapping[str, Any] | None) -> T | None:
    """A frozen value from JSON: lists are tuples, and a field that this version does not know is left out."""
    if data is None:
        return None
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in known})


def _pack(ids: tuple[int, ...]) -> bytes | None:
    """Token ids as little-endian int32; OverflowError beyond."""
    return np.array(ids, dtype="<i4").tobytes() if ids else None


def _unpack(data: bytes | None, stored: str, wanted: type[Any]) -> NDArray[Any]:
    return np.frombuffer(data or b"", dtype=stored).astype(wanted)
