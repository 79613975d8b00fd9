from __future__ import annotations

import contextlib
import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from sona_stream.config.settings import MemorySettings, SonaSettings
from sona_stream.engine.memory import EpisodeMemory
from sona_stream.episodes import EpisodeRecord, EpisodeText, Question, QuestionVectors, Viewer, person_of
from sona_stream.lora import HiddenSpace
from sona_stream.store import create_store

DIM = 24


def vector(text: str, size: int, *, salt: str = "") -> np.ndarray:
    """A bag of words: texts that share words are close. Blind to order, as the static table is."""
    out = np.zeros(size)
    for word in text.lower().replace("?", " ").replace(",", " ").split():
        seed = int.from_bytes(hashlib.blake2b(f"{salt}{word}".encode(), digest_size=8).digest(), "little")
        out += np.random.default_rng(seed).standard_normal(size)
    norm = np.linalg.norm(out)
    return (out / norm if norm else out).astype(np.float32)


def vectors(text: str, *, system: str = "", contextual: bool = True) -> QuestionVectors:
    return QuestionVectors(
        static=vector(text, 256),
        contextual=vector(text, 384, salt="c") if contextual else None,
        system=vector(system, 256) if system else None,
    )


def space(dim: int = DIM, version: str = "s1") -> HiddenSpace:
    rng = np.random.default_rng(dim)
    mean = rng.standard_normal(dim).astype(np.float32)
    spread = np.exp(2 * rng.standard_normal(dim)).astype(np.float32)
    return HiddenSpace(mean=mean, spread=spread, version=version)


def record(text: str = "What is the capital of France?", answer: str = "Lyon", **changes) -> EpisodeRecord:
    """`answer` decides states and tokens."""
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(answer.encode(), digest_size=8).digest(), "little"))
    tokens = changes.pop("tokens", 5)
    where = changes.pop("space", space())
    system = changes.pop("system", "")
    contextual = changes.pop("contextual", True)
    values = {
        "model": "m",
        "fingerprint": "fp",
        "tenant": "acme",
        "user": "alice",
        "key_id": "k1",
        "request_id": "r1",
        "feedback_id": "f1",
        "question": Question(text, system),
        "vectors": vectors(text, system=system, contextual=contextual),
        "hidden": (where.mean + where.spread * rng.standard_normal((tokens, len(where.mean)))).astype(np.float32),
        "token_ids": rng.integers(0, 50000, tokens).astype(np.int32),
        "space": where,
        "text": EpisodeText(answer=answer, body=b'{"messages": []}'),
    }
    return EpisodeRecord(**(values | changes))


def viewer(user: str | None = "alice", tenant: str = "acme", *, key_id: str = "k1", model="m", fingerprint="fp"):
    return Viewer(model=model, fingerprint=fingerprint, tenant=tenant, person=person_of(user, key_id))


def acting(memory, text, who=None, *, system="", contextual=True):
    """Keys of what acts on this question."""
    asked = vectors(text, system=system, contextual=contextual)
    recalled = memory.recall(who or viewer(), asked.static)
    if not recalled:
        return []
    return [ref.key for ref in memory.gate(recalled, Question(text, system), asked)]


@pytest.fixture
def make():
    return SimpleNamespace(
        record=record, viewer=viewer, vectors=vectors, vector=vector, acting=acting, space=space, dim=DIM
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def opened(folder):
    """``async with opened(storage=..., **memory settings) as (store, memory)``"""

    @contextlib.asynccontextmanager
    async def enter(storage="features", *, compiled=False, **settings):
        sona = SonaSettings(storage=storage, memory=MemorySettings(**settings))
        async with create_store(sona, directory=folder) as store:
            memory = EpisodeMemory(store.episode_store, sona.memory, storage=storage, compiled=compiled)
            async with memory:
                yield store, memory

    return enter
