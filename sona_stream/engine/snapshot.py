"""The engine's whole learned state as bytes: safetensors, with the numbers as JSON in its metadata.

Format 1. Open trajectories are not part of it: their answers belong to a process that is gone when it is read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.engine import SonaConfig
from ..errors import ConfigError, StateError
from .bank import PATTERN_ROW, PatternBank
from .base_lora import BaseLora
from .ewc import Task, TaskMemory, Weights
from .micro import frozen
from .pool import VectorPool
from .recorder import Recorder
from .trajectories import STEP_ROW, TRAJECTORY_ROW, TrajectoryBuffer

__all__ = ["FORMAT", "decoded", "encoded", "gathered", "restored", "write_atomically"]

FORMAT = 1
Arrays = dict[str, NDArray[Any]]
_SAME = ("hidden_dim", "embedding_dim", "micro_lora_rank")


def gathered(
    config: SonaConfig, recorder: Recorder, tasks: TaskMemory, base: BaseLora, buffer: TrajectoryBuffer
) -> tuple[Arrays, dict[str, Any]]:
    """Copies of everything, of the trajectories those in ``buffer``; the caller holds the lock."""
    arrays: Arrays = {}
    micro_arrays, micro_numbers = recorder.micro.state()
    arrays |= {f"micro.{name}": array.copy() for name, array in micro_arrays.items()}
    for group, weights in base.groups.items():
        _put_weights(arrays, f"base.{group}", weights)
    numbers: dict[str, Any] = {
        "config": config.to_dict(),
        "micro": micro_numbers,
        "credit": recorder.credit.state(),
        "base": {"groups": list(base.groups), "updates": base.updates, "used": sorted(base.used)},
        "recorder": {"recorded": recorder.recorded, "dropped": recorder.dropped, "expired": recorder.expired},
        "bank": _put_bank(arrays, recorder.bank),
        "tasks": _put_tasks(arrays, tasks),
        "routes": _put_buffer(arrays, buffer),
    }
    return arrays, numbers


def encoded(arrays: Arrays, numbers: dict[str, Any]) -> bytes:
    """-> one safetensors file"""
    from safetensors.numpy import save

    # One key only: safetensors writes several in no particular order, and equal states should be equal bytes.
    metadata = {"sona_stream": json.dumps({"format": "engine", "version": FORMAT, "state": numbers})}
    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=metadata))


def decoded(data: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Raises StateError when the bytes are damaged or were written by a newer version."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sona_stream"])
        arrays: Arrays = load(data)
        version, kind, state = int(header["version"]), header["format"], header["state"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"not an engine snapshot, or damaged: {error}") from None
    if kind != "engine":
        raise StateError(f"not an engine snapshot: format is {kind!r}")
    if version > FORMAT:
        raise StateError(
            f"engine snapshot has format {version}, this version reads up to {FORMAT}: upgrade sona-stream"
        )
    return arrays, state


def restored(
    arrays: Mapping[str, NDArray[Any]],
    numbers: Mapping[str, Any],
    recorder: Recorder,
    tasks: TaskMemory,
    base: BaseLora,
    config: SonaConfig,
) -> None:
    """Fill a fresh engine's parts. Raises ConfigError when sizes differ from the snapshot's."""
    was = numbers["config"]
    for name in _SAME:
        if getattr(config, name) != was[name]:
            raise ConfigError(f"{name} is {getattr(config, name)}, but the snapshot was taken with {was[name]}")
    prefix = "micro."
    micro = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
    recorder.micro.restore(micro, numbers["micro"])
    recorder.credit.restore(numbers["credit"])
    base.groups = {group: _get_weights(arrays, f"base.{group}") for group in numbers["base"]["groups"]}
    base.updates, base.used = numbers["base"]["updates"], set(numbers["base"]["used"])
    for name, value in numbers["recorder"].items():
        setattr(recorder, name, value)
    _get_bank(arrays, numbers["bank"], recorder.bank)
    _get_tasks(arrays, numbers["tasks"], tasks)
    _get_buffer(arrays, numbers["routes"], recorder)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Old content or new content, never half of it."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _put_weights(arrays: Arrays, name: str, weights: Weights) -> None:
    arrays[f"{name}.A"], arrays[f"{name}.Bt"] = weights[0].copy(), weights[1].copy()


def _get_weights(arrays: Mapping[str, NDArray[Any]], name: str) -> Weights:
    return frozen(arrays[f"{name}.A"]), frozen(arrays[f"{name}.Bt"])


def _put_rows(arrays: Arrays, name: str, rows: NDArray[Any]) -> None:
    for field in rows.dtype.names or ():
        arrays[f"{name}.{field}"] = rows[field].copy()


def _get_rows(arrays: Mapping[str, NDArray[Any]], name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    rows = np.zeros(len(arrays[f"{name}.{(dtype.names or ())[0]}"]), dtype)
    for field in dtype.names or ():
        rows[field] = arrays[f"{name}.{field}"]
    return rows


def _put_vectors(arrays: Arrays, name: str, pool: VectorPool, slots: NDArray[np.int64]) -> None:
    arrays[f"{name}.codes"], arrays[f"{name}.scales"] = pool.take_out(slots)


def _get_vectors(arrays: Mapping[str, NDArray[Any]], name: str, pool: VectorPool) -> list[int]:
    codes, scales = arrays[f"{name}.codes"], arrays[f"{name}.scales"]
    return [pool.put_codes(row, float(scale)) for row, scale in zip(codes, scales, strict=True)]


def _put_bank(arrays: Arrays, bank: PatternBank) -> dict[str, Any]:
    arrays["bank.centroids"] = bank.centroids.copy()
    _put_rows(arrays, "bank", bank.rows)
    routes = [{name: sums.tolist() for name, sums in each.items()} for each in bank.routes]
    return {"unit": bank.unit, "learned": bank.learned, "aliases": list(bank.aliases.items()), "routes": routes}


def _get_bank(arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any], bank: PatternBank) -> None:
    bank.unit, bank.learned = numbers["unit"], numbers["learned"]
    bank.aliases = {int(old): int(new) for old, new in numbers["aliases"]}
    rows = _get_rows(arrays, "bank", PATTERN_ROW)
    heaviest = np.sort(np.argsort(-rows["weight"], kind="stable")[: bank.limit])
    for i in heaviest:
        routes = {name: np.array(sums) for name, sums in numbers["routes"][i].items()}
        bank.adopt(arrays["bank.centroids"][i], rows[i], routes)


def _put_tasks(arrays: Arrays, tasks: TaskMemory) -> dict[str, Any]:
    every = [*tasks.done, *([] if tasks.current in tasks.done else [tasks.current])]
    for i, task in enumerate(every):
        arrays[f"task.{i}.mean"] = task.mean.copy()
        _put_vectors(arrays, f"task.{i}", tasks.pool, np.array(task.slots, dtype=np.int64))
        if task.micro is not None:
            _put_weights(arrays, f"task.{i}.micro", task.micro)
        for group, weights in task.base.items():
            _put_weights(arrays, f"task.{i}.base.{group}", weights)
    return {
        "done": len(tasks.done),
        "current": next(i for i, task in enumerate(every) if task is tasks.current),
        "tasks": tasks.tasks,
        "every": [
            {
                "count": task.count,
                "cosine": task.cosine,
                "variance": task.variance,
                "micro": task.micro is not None,
                "base": list(task.base),
            }
            for task in every
        ],
    }


def _get_tasks(arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any], tasks: TaskMemory) -> None:
    every = []
    for i, known in enumerate(numbers["every"]):
        task = Task(np.array(arrays[f"task.{i}.mean"]), known["count"], known["cosine"], known["variance"])
        task.slots = _get_vectors(arrays, f"task.{i}", tasks.pool)
        if known["micro"]:
            task.micro = _get_weights(arrays, f"task.{i}.micro")
        task.base = {group: _get_weights(arrays, f"task.{i}.base.{group}") for group in known["base"]}
        every.append(task)
    tasks.done, tasks.current, tasks.tasks = every[: numbers["done"]], every[numbers["current"]], numbers["tasks"]


def _put_buffer(arrays: Arrays, buffer: TrajectoryBuffer) -> list[str]:
    records = buffer.trajectories.slice(buffer.trajectories.first, buffer.trajectories.end)
    steps = buffer.steps.slice(buffer.steps.first, buffer.steps.end)
    _put_rows(arrays, "buffer", records)
    _put_rows(arrays, "step", steps)
    _put_vectors(arrays, "query", buffer.queries, records["query"])
    _put_vectors(arrays, "vector", buffer.vectors, steps["slot"])
    _put_vectors(arrays, "extra", buffer.vectors, steps["extra"][steps["extra"] >= 0])
    return list(buffer.routes)


def _get_buffer(arrays: Mapping[str, NDArray[Any]], routes: list[str], recorder: Recorder) -> None:
    saved = recorder.new_buffer(capacity=max(1, len(arrays["buffer.query"])))
    saved.routes = list(routes)
    records, steps = _get_rows(arrays, "buffer", TRAJECTORY_ROW), _get_rows(arrays, "step", STEP_ROW)
    records["query"] = _get_vectors(arrays, "query", saved.queries)
    steps["slot"] = _get_vectors(arrays, "vector", saved.vectors)
    steps["extra"][steps["extra"] >= 0] = _get_vectors(arrays, "extra", saved.vectors)
    for step in steps:
        saved.steps.append(step.item())
    for record in records:
        saved.trajectories.append(record.item())
    recorder.dropped += recorder.buffer.extend(saved)
