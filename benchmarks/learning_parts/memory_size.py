"""The memory with 100,000 episodes of 64 tokens in it (`--quick`: of 8 tokens, which changes what lies on disk and
nothing that is searched), all of them one person's.

Store, index and kernels are the product's, in a state folder on disk; the hidden size is 576, SmolLM2-135M's.
Static vectors lie around 1,000 random centres, so that a question near a centre has as many candidates as are ever
looked at.

* `memory.search_ms_100k`: from a question's static vector to its candidates (`EpisodeMemory.recall`), median over
  400 questions, one at a time: half lie near a centre, half near none. ``compared``: the 99th percentile; the same
  with the gate on all candidates, whose heads are in the disk's cache; the reading of one episode's states.
* `memory.ram_mb_100k`: what opening the memory of that folder adds to the process's own memory (Linux: `Anonymous`
  of /proc/self/smaps_rollup; mapped files belong to the disk's cache). ``compared``: the index's own count of its
  bytes, and what lies on disk.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import Report, Row

from sona_stream.config.settings import MemorySettings, SonaSettings
from sona_stream.engine.memory import STATIC_DIM, EpisodeMemory
from sona_stream.engine.memory.encoding import body_of, codes_of, head_bytes, head_of
from sona_stream.engine.memory.words import Reader
from sona_stream.episodes import Episode, NewEpisode, Question, QuestionVectors, Viewer, key_of
from sona_stream.kernels import Kernels, load
from sona_stream.lora import HiddenSpace
from sona_stream.store import SqliteStore, create_store

from .plan import Run, say

__all__ = ["EPISODES", "add_rows", "fill", "measure"]

F32 = NDArray[np.float32]
EPISODES, HIDDEN, CONTEXTUAL = 100_000, 576, 384
TOKENS, QUICK_TOKENS = 64, 8
CENTRES, BODIES, CHUNK, QUESTIONS = 1000, 256, 1000, 400
AWAY = 0.45
"""Length of what is added to a centre, whose length is 1."""
WHO = Viewer(model="m", fingerprint="f", tenant="t", person="key:k")


def add_rows(report: Report, run: Run) -> None:
    """Both of `memory.*`."""
    told = run.kept("memory_size", lambda: _measure(QUICK_TOKENS if run.quick else TOKENS))
    search = sorted(told["search_ms"])
    compared = {
        "p99": _high(search),
        "with gate": statistics.median(told["gated_ms"]),
        "with gate, p99": _high(sorted(told["gated_ms"])),
        "candidates, most": max(told["candidates"]),
        "states of one": statistics.median(told["states_ms"]),
    }
    report.measured("memory.search_ms_100k", search, "ms", goal=5, compared=compared)
    compared = {"index": told["index_mb"], "on disk": told["disk_mb"], "seconds to open": told["open_s"]}
    report.add(Row("memory.ram_mb_100k", told["ram_mb"], "MB", goal=64, compared=compared))


def _measure(tokens: int) -> dict[str, Any]:
    """In a process of its own: who filled the folder has memory left over."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        asyncio.run(fill(Path(folder), EPISODES, tokens))
        say(f"memory_size: {EPISODES} episodes written in {time.monotonic() - began:.0f} s")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measured, Path(folder)).result()


def _measured(folder: Path) -> dict[str, Any]:
    told = asyncio.run(measure(folder))
    return told | {"disk_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6}


async def fill(folder: Path, count: int, tokens: int = TOKENS) -> None:
    """A state folder with so many episodes."""
    kernels, rng = load(compiled=True), np.random.default_rng(0)
    space = HiddenSpace(np.zeros(HIDDEN, np.float32), np.ones(HIDDEN, np.float32), "space")
    bodies = [_body(rng, tokens, space, kernels) for _ in range(BODIES)]
    centres = _centres()
    async with _store(folder) as store:
        reader = Reader(store.episode_store.secret())
        for start in range(0, count, CHUNK):
            numbers = np.arange(start, min(count, start + CHUNK))
            static, meant = _near(rng, centres[numbers % CENTRES]), _units(rng, len(numbers), CONTEXTUAL)
            new = [
                _episode(int(n), QuestionVectors(*pair), bodies[n % BODIES], tokens, space, reader, kernels)
                for n, *pair in zip(numbers, static, meant, strict=True)
            ]
            await asyncio.gather(*map(store.episode_store.put, new))


async def measure(folder: Path) -> dict[str, Any]:
    """Times in ms and sizes in MB (1e6 bytes) of what `fill` made."""
    settings = MemorySettings(tenant_episodes=EPISODES, tenant_mb=8192, episodes=EPISODES)
    async with _store(folder) as store:
        async with EpisodeMemory(None, settings):
            pass  # modules and kernels are loaded now, as they are in a server
        before = _own_memory()
        began = time.perf_counter()
        async with EpisodeMemory(store.episode_store, settings) as memory:
            told = {"open_s": time.perf_counter() - began, "ram_mb": (_own_memory() - before) / 1e6}
            told |= _asked(memory)
            told["index_mb"] = memory.counters()["index_bytes"] / 1e6
            keys = [episode.key for episode in await memory.episodes(limit=QUESTIONS)]
            told["states_ms"] = [_timed(memory.states, key)[0] for key in keys]
    return told


def _asked(memory: EpisodeMemory) -> dict[str, list[float]]:
    rng = np.random.default_rng(1)
    near = _near(rng, _centres()[: QUESTIONS // 2])
    static = rng.permutation(np.concatenate((near, _units(rng, QUESTIONS // 2, STATIC_DIM))))
    found: dict[str, list[float]] = {"search_ms": [], "gated_ms": [], "candidates": []}
    for number, one in enumerate(static):
        question, vectors = Question(_text(number)), QuestionVectors(one, _units(rng, 1, CONTEXTUAL)[0])
        searched, recalled = _timed(memory.recall, WHO, one)
        gated, _ = _timed(memory.gate, recalled, question, vectors)
        found["search_ms"].append(searched)
        found["gated_ms"].append(searched + gated)
        found["candidates"].append(len(recalled.slots))
    return found


def _timed(what: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    value = what(*arguments)
    return 1000 * (time.perf_counter() - began), value


def _episode(
    number: int,
    vectors: QuestionVectors,
    body: bytes,
    tokens: int,
    space: HiddenSpace,
    reader: Reader,
    kernels: Kernels,
) -> NewEpisode:
    now = time.time()
    episode = Episode(
        key=key_of(0, 0),
        number=0,
        model=WHO.model,
        fingerprint=WHO.fingerprint,
        scope="person",
        tenant=WHO.tenant,
        user=None,
        key_id="k",
        request_id=f"r{number}",
        feedback_id=f"f{number}",
        kind="correction",
        tokens=tokens,
        answer_tokens=tokens,
        nbytes=0,
        created_at=now,
        stored_at=now,
    )
    head = head_of(vectors, reader.read(_text(number)), space.version, kernels)
    codes = codes_of(vectors.static, kernels).values.tobytes()
    return NewEpisode(episode=episode, static=codes, standing=0.0, head=head_bytes(head), body=body, space=space)


def _text(number: int) -> str:
    return f"What does part {number} of the Tarrow cost in our shop in street {number % 77}?"


def _body(rng: np.random.Generator, tokens: int, space: HiddenSpace, kernels: Kernels) -> bytes:
    hidden = rng.standard_normal((tokens, HIDDEN)).astype(np.float32)
    return body_of(hidden, rng.integers(0, 49152, tokens).astype(np.int32), space, kernels)


def _centres() -> F32:
    return _units(np.random.default_rng(2), CENTRES, STATIC_DIM)


def _near(rng: np.random.Generator, centres: F32) -> F32:
    moved = centres + AWAY * _units(rng, *centres.shape)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def _units(rng: np.random.Generator, count: int, dim: int) -> F32:
    drawn = rng.standard_normal((count, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def _store(folder: Path) -> SqliteStore:
    return create_store(SonaSettings(), directory=folder)


def _own_memory() -> int:
    """Bytes."""
    gc.collect()
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:
        raise OSError("/proc/self/smaps_rollup has no line Anonymous")
    return 1024 * int(found[1])


def _high(ordered: Sequence[float]) -> float:
    """The 99th percentile."""
    return ordered[round(0.99 * (len(ordered) - 1))]
