from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sona_stream.config.settings import LearningSettings, SonaSettings, StorageSettings
from sona_stream.events import (
    AdapterRef,
    Feedback,
    RouteDecision,
    Sampling,
    Score,
    Trajectory,
    Usage,
)
from sona_stream.lora import AdapterRecord, Capture, LoraWeights, LowRank
from sona_stream.store import SqliteStore, create_store

KEY = "org/model/acme/CodeGen"


def _trajectory(request_id: str = "r1", **changes: Any) -> Trajectory:
    values: dict[str, Any] = {
        "request_id": request_id,
        "tenant": "acme",
        "key_id": "k1",
        "user": "alice",
        "endpoint": "completions",
        "requested_model": "sona/auto",
        "model": "small",
        "route": RouteDecision(
            model="small",
            reason="pattern_type CodeGen",
            pattern="p7",
            pattern_type="CodeGen",
            similarity=0.75,
            propensity=0.5,
            fallbacks=("big", "bigger"),
        ),
        "adapter": AdapterRef(key=KEY, version=3, pinned=True),
        "client_ids": ("client-1", "client-2"),
        "completion_id": f"cmpl-{request_id}",
        "embedding": np.linspace(-1, 1, 8, dtype=np.float32),
        "prompt_ids": (1, 2, 3, 49151),
        "token_ids": (7, 8),
        "query": "why?",
        "body": b'{"prompt": "why?"}',
        "answer": "because \ud800 \u4f60",
        "sampling": Sampling(temperature=0.3, max_tokens=5, stop=("END",), n=2, logprobs=0),
        "score": Score(value=0.5, parts={"repetition": 0.25}),
        "finish_reason": "stop",
        "usage": Usage(prompt_tokens=4, completion_tokens=2),
        "learn": False,
        "outcome": "cancelled",
        "started_at": 100.0,
        "ttft_s": 0.1,
        "duration_s": 1.5,
    }
    return Trajectory(**(values | changes))


def _feedback(id: str = "f1", **changes: Any) -> Feedback:
    values: dict[str, Any] = {
        "id": id,
        "request_id": "r1",
        "tenant": "acme",
        "key_id": "k1",
        "user": "alice",
        "kind": "rating",
        "quality": 0.75,
        "created_at": 5.0,
    }
    return Feedback(**(values | changes))


def _capture(request_id: str = "r1", *, tokens: int = 3, seed: int = 0, **changes: Any) -> Capture:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "request_id": request_id,
        "fingerprint": "fp",
        "prompt_ids": np.arange(4, dtype=np.int32),
        "token_ids": rng.integers(0, 49152, tokens).astype(np.int32),
        "hidden": rng.standard_normal((tokens, 16)).astype(np.float32),
        "logprobs": -rng.random(tokens).astype(np.float32),
        "adapter_versions": np.full(tokens, 2, dtype=np.int32),
        "adapter_key": KEY,
        "temperature": 0.7,
        "handle": "h",
    }
    return Capture(**(values | changes))


def _record(version: int = 1, *, key: str = KEY, seed: int = 0, base: bool = True, **changes: Any) -> AdapterRecord:
    rng = np.random.default_rng(seed * 1000 + version)

    def pair(rank: int, scaling: float) -> LowRank:
        lora_A = rng.standard_normal((rank, 16)).astype(np.float32)
        return LowRank(lora_A, rng.standard_normal((16, rank)).astype(np.float32), scaling)

    values: dict[str, Any] = {
        "key": key,
        "version": version,
        "parent": version - 1 or None,
        "fingerprint": "fp",
        "weights": LoraWeights(micro=pair(2, 0.5), base=pair(4, 2.0) if base else None),
        "moments": {"micro_A.m": rng.standard_normal((2, 16)).astype(np.float32)},
        "status": "published",
        "reason": "step",
        "metrics": {"kl": 0.01},
        "feedback_ids": ("f1", "f2"),
        "created_at": 9.0,
    }
    return AdapterRecord(**(values | changes))


@pytest.fixture
def make() -> SimpleNamespace:
    """Values with every field set."""
    return SimpleNamespace(trajectory=_trajectory, feedback=_feedback, capture=_capture, record=_record, key=KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStore]]


@pytest.fixture
def open_store(folder: Path) -> OpenStore:
    @contextlib.asynccontextmanager
    async def opened(
        storage: str = "features",
        *,
        replay_capacity: int = 512,
        ttl_days: tuple[float, float] = (30, 30),
        **options: Any,
    ) -> AsyncIterator[SqliteStore]:
        settings = SonaSettings(
            storage=storage,  # type: ignore[arg-type]
            learner=LearningSettings(replay_capacity=replay_capacity),
            storage_options=StorageSettings(features_ttl_days=ttl_days[0], text_ttl_days=ttl_days[1]),
        )
        made = (
            SqliteStore(settings, directory=folder, **options)
            if options
            else create_store(settings, directory=folder)
        )
        async with made as store:
            yield store

    return opened
