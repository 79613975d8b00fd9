"""How many bytes learning takes: on disk, in the learner's memory, and on a model's host.

Everything is linear in the number of users but what a tenant or the program has once. Units: bytes, unless a name
says otherwise; d is the model's hidden size, r and R the ranks of the micro and the base pair, T the tokens of an
answer.

    weights of an adapter       8 d (r + R)            A and B of both pairs, float32
    moments beside them         8 d (r + R) + 32       of A's entries, two each
    a fit between replays       4 d (r + R)            its own B; A is the served version's
    an answer kept for replay   T (4 d + 12) + 4 P     P prompt tokens; on disk 2 d in place of 4 d
    an episode at a host        T (2 d + 8)            on disk T (d + 8), int8
    a tenant's curvature        4 (96 (d + 1) + d)     32 directions of outputs, 64 of inputs

What is no array (rows of the database, objects) is a constant a thing, measured: those of `_ROW` and `_OBJECT`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from ..config.engine import SonaConfig
from ..config.settings import SonaSettings
from ..events import PATTERN_TYPES

__all__ = ["FIXED", "MB", "Load", "Place", "Row", "adapter_file", "adapters_of", "episode_record", "rows_of"]

Place = Literal["disk", "learner", "host"]
Shapes = Mapping[str, Sequence[int]]

MB = 1 << 20
_DIRECTIONS = 32 + 64
_RESERVOIR, _RESERVOIR_TOKENS, _DOMAINS, _CLOSED = 16, 1024, 8, 4
_BANKS = 128
_WATCHES = 640
FIXED = "(64 MB, fixed)"
_VECTOR = 256
_CONTEXTUAL = 384

_ROW = {"adapter": 1110, "lesson": 760, "request": 900, "ids": 150, "index": 262, "episode": 640, "blob": 180}
"""Bytes in the database: of one row with its part of the indices; of a request without token ids and embedding, of
what names its user, and of its part of the indices."""
_OBJECT = {
    "line": 900,
    "adapter": 5300,
    "ledger": 3100,
    "lesson": 1900,
    "pattern": 240,
    "bank": 29_400,
    "table": 800,
    "watch": 92_000,
}
"""Bytes of Python's objects for one; of a watch that has seen every measure on both sides."""
_WATCHED = 44_000
"""What a watch keeps of the same."""
_HEAD = 350
"""of an episode: words of its question, names, lengths"""
_PAGE = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be held."""

    users: int = 100
    tenants: int = 1
    """that these users belong to; an end user's adapters and lessons are the end user's own"""
    patterns: int = 1
    """of one user, taught enough for an adapter of their own"""
    lessons: int = 32
    """judged answers kept for replay, of one user"""
    episodes: int = 10
    """corrections remembered, of one user"""
    requests: int = 100
    """of one user, that are kept: as many as come in `features_ttl_days`"""
    tokens: int = 64
    """of one answer"""
    prompt_tokens: int = 64
    rank: int = 2
    base_rank: int = 8
    """0: nothing was consolidated yet"""
    hidden_dim: int = 576
    vocab: int = 49152


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One kind of thing in one place."""

    place: Place
    what: str
    size: float
    """of one"""
    each: float
    """of one user"""
    once: float = 0.0
    """besides, however many users there are"""
    setting: str = ""
    """that bounds it, if one does"""
    most: float = 0.0
    """things that are there at most, where their number is bounded; 0: it is not"""

    def needed(self, users: int) -> int:
        """By so many users."""
        count = self.each * users + self.once
        return round(self.size * (min(count, self.most) if self.most else count))


def adapters_of(patterns: int) -> int:
    """Adapter keys of one user: everything, the types that these patterns belong to, the patterns."""
    return 1 + _types(patterns) + patterns


def _weights(load: Load) -> int:
    """Of one adapter."""
    return 8 * load.hidden_dim * (load.rank + load.base_rank)


def adapter_file(load: Load) -> int:
    """One version on disk: a safetensors file."""
    d, ranks = load.hidden_dim, {"micro": load.rank, "base": load.base_rank}
    shapes: dict[str, Sequence[int]] = {}
    for pair, rank in ranks.items():
        if rank:
            shapes |= {f"{pair}.lora_A": (rank, d), f"{pair}.lora_B": (d, rank)}
            moment = "moments." + ("base_" if pair == "base" else "")
            shapes |= {f"{moment}{name}": (rank, d) for name in ("m_A", "v_A")} | {f"{moment}count": (1,)}
    shapes |= {"moments.rms": (1,), "moments.evidence": (3,), "moments.trust": (1,), "moments.replayed": (1,)}
    return _tensor_file(shapes)


def _tensor_file(shapes: Shapes, sizes: Mapping[str, int] | None = None) -> int:
    """A safetensors file of these arrays, of 4 bytes an entry or what `sizes` says: header and content."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = (sizes or {}).get(name, 4)
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + at


def _lesson_file(load: Load) -> int:
    """One judged answer on disk."""
    T = load.tokens
    shapes = dict.fromkeys(("token_ids", "logprobs", "adapter_versions"), (T,))
    return _tensor_file(
        {"hidden": (T, load.hidden_dim), "prompt_ids": (load.prompt_tokens,), **shapes}, {"hidden": 2}
    )


def rows_of(
    load: Load,
    settings: SonaSettings,
    config: SonaConfig,
    bounds: Mapping[str, int],
    *,
    remote: bool,
    dtype: int = 2,
) -> list[Row]:
    """Everything. ``config``: of the engine that routing learns in; ``bounds``: of the host, setting -> bytes.
    ``remote``: the host is another program (vLLM), whose weights have `dtype` bytes an entry.
    """
    keys = adapters_of(load.patterns)
    host = _at_server(load, keys, bounds, dtype) if remote else _at_host(load, settings, keys, bounds)
    return [*_on_disk(load, settings, config, keys), *_in_learner(load, settings, config, keys), *host]


def _on_disk(load: Load, settings: SonaSettings, config: SonaConfig, keys: int) -> list[Row]:
    keeps = settings.storage != "none"
    keep, older = settings.learner.keep_versions, settings.learner.older_versions
    versions = keys * (keep + min(older, (load.lessons // keep).bit_length()))  # at a version a lesson
    answer, text = _lesson_file(load) + _ROW["lesson"], 4 * (load.tokens + 2 * load.prompt_tokens)
    features = _ROW["ids"] + 4 * _VECTOR + 4 * (load.prompt_tokens + load.tokens)
    request = _paged(_ROW["request"] + (features if keeps else 0)) + _ROW["index"]
    said = _paged(text) if settings.storage == "text" else 0
    rows = [
        Row("disk", "adapter versions", adapter_file(load) + _ROW["adapter"], versions),
        Row("disk", "curvature", _paged(_curvature(load) + _ROW["blob"]), 1),
        Row("disk", "watches", _paged(_WATCHED + _ROW["blob"]), keys),
        Row("disk", "counts", _paged(800 + 36 * load.lessons), 1),
        Row("disk", "requests", request + said, load.requests),
    ]
    if keeps:
        domains, most = _domains(load), settings.memory.episodes
        rows += [
            Row("disk", "lessons", answer, min(load.lessons, settings.learner.replay_capacity * keys)),
            Row("disk", "domains", _domain(load, answer) + _ROW["blob"] / keys, domains),
            Row("disk", "pattern banks", _bank_on_disk(config), 0, load.tenants),
            Row("disk", "episodes", episode_record(load), load.episodes, 0, "sona.memory.mb", most),
            Row("disk", "rows of episodes", _ROW["episode"] + said, load.episodes, most=most),
        ]
    return rows


def _in_learner(load: Load, settings: SonaSettings, config: SonaConfig, keys: int) -> list[Row]:
    lessons = min(load.lessons, settings.learner.replay_capacity)
    adapters, replay = "sona.learner.adapter_mb", "sona.learner.replay_mb"
    awake = settings.learner.adapter_mb * MB / _awake(load)
    rows = [
        Row("learner", "adapters", _awake(load), keys, setting=adapters),
        Row("learner", "objects of adapters", _OBJECT["adapter"], keys, most=awake),
        Row("learner", "names of adapters", _OBJECT["line"], keys),
        Row("learner", "counts", _OBJECT["ledger"] + 150 * load.lessons, 1),
        Row("learner", "lessons", _lesson(load), lessons, setting=replay),
        Row("learner", "scores of lessons", 4 * load.hidden_dim, lessons, setting=replay),
        Row("learner", "watches", _OBJECT["watch"], keys, most=_WATCHES),
        Row("learner", "curvature", _curvature(load), 1, setting=replay),
        Row("learner", "domains", _domain(load, _lesson(load)), _domains(load), setting=replay),
        Row("learner", "pattern banks", _bank(load, config), 0, load.tenants, most=_BANKS),
        Row("learner", "episodes' index", _index_row(), load.episodes, most=settings.memory.episodes),
    ]
    if settings.storage == "none":
        states = load.tokens * (load.hidden_dim + 8) + _CONTEXTUAL + _HEAD
        rows.append(Row("learner", "episodes", states + 1500, load.episodes, setting="sona.memory.volatile_mb"))
    return rows


def _at_host(load: Load, settings: SonaSettings, keys: int, bounds: Mapping[str, int]) -> list[Row]:
    own = _weights(load)
    answer, logits = load.tokens * (4 * load.hidden_dim + 12) + 4 * load.prompt_tokens, 4 * load.tokens * load.vocab
    return [
        Row("host", "adapters", own, keys, setting="litellm_params.adapter_mb"),
        Row("host", "episodes", _at_hand(load), load.episodes, setting="litellm_params.episode_mb"),
        Row("host", "objects of adapters", _OBJECT["table"], keys, most=bounds["litellm_params.adapter_mb"] / own),
        # Caches of what is captured, or computed, again.
        Row("host", "latest answers", answer, load.requests, most=settings.learner.capture_mb * MB / answer),
        Row("host", "base logits", logits, load.lessons, most=bounds["litellm_params.logit_cache_mb"] / logits),
    ]


def _at_server(load: Load, keys: int, bounds: Mapping[str, int], dtype: int) -> list[Row]:
    T, d = load.tokens, load.hidden_dim
    answer, blob = T * (d * dtype + 13), T * (2 * d + 4) + 8 * d + 300
    return [
        Row("host", "adapters", _weights(load), keys, setting="SONA_VLLM_ADAPTER_MB"),
        Row("host", "episodes", _at_hand(load), load.episodes, setting="SONA_VLLM_EPISODE_MB"),
        Row("host", "latest answers", answer, load.requests, most=bounds["SONA_VLLM_CAPTURE_MB"] / answer),
        Row("host", "ring of states", 2 * d * dtype + 13, 0, 8192),
        Row("learner", "episodes for the server", blob, load.episodes, setting=FIXED),
    ]


def _at_hand(load: Load) -> int:
    """One episode in half precision."""
    return load.tokens * (2 * load.hidden_dim + 8)


def _index_row() -> int:
    """One episode in the index of its memory: codes, links and numbers, and its part of the circle's name."""
    return _VECTOR + 4 + 4 + 71 + 16


def _types(patterns: int) -> int:
    return min(patterns, len(PATTERN_TYPES))


def _awake(load: Load) -> int:
    """One adapter in memory with its moments, and where its last replay ended."""
    return _weights(load) * 5 // 2 + 32


def _lesson(load: Load) -> int:
    return load.tokens * (4 * load.hidden_dim + 12) + 4 * load.prompt_tokens + _OBJECT["lesson"]


def _curvature(load: Load) -> int:
    return 4 * (_DIRECTIONS * (load.hidden_dim + 1) + load.hidden_dim)


def _domains(load: Load) -> int:
    """Of all adapters of one user, once consolidated: a key's are what the next finer level tells apart."""
    if not load.base_rank:
        return 0
    kinds = (
        (1, max(_types(load.patterns), 1)),
        (_types(load.patterns), load.patterns),
        (load.patterns, load.patterns),
    )
    return sum(min(count, _DOMAINS * keys) for keys, count in kinds if keys and load.lessons >= _CLOSED * count)


def _domain(load: Load, lesson: float) -> float:
    """One with its answers, each of which takes `lesson`."""
    shared = load.lessons // max(load.patterns, 1)
    kept = min(_RESERVOIR, -(-_RESERVOIR_TOKENS // load.tokens), shared)
    return _weights(load) + _curvature(load) + kept * lesson


def _bank_on_disk(config: SonaConfig) -> int:
    return _paged(config.pattern_clusters * (4 * _VECTOR + 222) + 15_800 + _ROW["blob"])


def _bank(load: Load, config: SonaConfig) -> float:
    m = config.pattern_clusters
    waiting = min(config.trajectory_capacity, load.requests * load.users / load.tenants)
    return m * (4 * _VECTOR + 8 * m + _OBJECT["pattern"]) + waiting * (_VECTOR + 103) + _OBJECT["bank"]


def _paged(payload: int) -> int:
    """What SQLite takes for a row of so many bytes: rows share a page while they fit, and a long one goes on in
    pages of its own (https://www.sqlite.org/fileformat2.html, "Cell Payload Overflow Pages").
    """
    here, further = payload, 0
    if payload > _PAGE - 35:
        least = (_PAGE - 12) * 32 // 255 - 23
        here = least + (payload - least) % (_PAGE - 4)
        here = here if here <= _PAGE - 35 else least
        further = (payload - here) // (_PAGE - 4)
    return _PAGE // max((_PAGE - 8) // (here + 12), 1) + _PAGE * further


def episode_record(load: Load) -> int:
    """Its record in a segment."""
    return 32 + 8 + load.tokens * (load.hidden_dim + 8) + _CONTEXTUAL + _HEAD
