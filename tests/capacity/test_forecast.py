"""The forecast against the real thing: stores, tables and engines are filled, then weighed."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import tracemalloc
import uuid

import numpy as np
import pytest

from sona_stream.app.engine_settings import engine_config
from sona_stream.config.load import settings_for_local
from sona_stream.config.settings import CanarySettings, LearningSettings, MemorySettings, SonaSettings
from sona_stream.engine import SonaEngine, capacity
from sona_stream.engine.capacity import Load, adapters_of, rows_of
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.known import packed
from sona_stream.engine.learner.watch import Watch
from sona_stream.engine.learner.watches import MOST
from sona_stream.engine.memory import EpisodeMemory
from sona_stream.episodes import EpisodeRecord, EpisodeText, Question, QuestionVectors
from sona_stream.events import (
    PATTERN_TYPES,
    AdapterRef,
    Feedback,
    RouteDecision,
    Sampling,
    Score,
    Trajectory,
    Usage,
    pupil,
)
from sona_stream.lora import AdapterRecord, Capture, HiddenSpace, LoraWeights, LowRank
from sona_stream.store import create_store

D, WITHIN = 128, 0.10
_FRAMES, _PARTS = 6, ("sona_stream", "sona_stream_adapters", "capacity")
FINGERPRINT = "sha256:" + "5" * 64
LOAD = Load(patterns=3, rank=2, base_rank=4, hidden_dim=D, vocab=2000, lessons=32, requests=5)
CONFIG = engine_config(settings_for_local(), 256, compiled=False)
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """What is weighed is the files' size; waiting for the disk would take minutes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def forecast(load, sona=None, **where):
    """{(place, what): bytes}"""
    bounds = {
        "litellm_params.logit_cache_mb": 1 << 30,
        "litellm_params.adapter_mb": 1 << 28,
        "SONA_VLLM_CAPTURE_MB": 1 << 28,
    }
    rows = rows_of(load, sona or SonaSettings(), CONFIG, bounds, **{"remote": False, **where})
    return {(row.place, row.what): row.needed(load.users) for row in rows}


def near(told, measured, within=WITHIN):
    assert abs(told / measured - 1) <= within, f"forecast {told:,}, measured {measured:,}: {told / measured:.3f}"


@contextlib.contextmanager
def weighed():
    """Bytes that this program's code, and what it called, added inside and that are still there. What a thread of
    an earlier test goes on with, a compiler's for one, is no part of it.
    """
    gc.collect()
    tracemalloc.start(_FRAMES)
    before, found = _ours(), []
    try:
        yield found
        gc.collect()
        found.append(_ours() - before)
    finally:
        tracemalloc.stop()


def _ours():
    ours = [tracemalloc.Filter(True, f"*{os.sep}{part}{os.sep}*", all_frames=True) for part in _PARTS]
    return sum(one.size for one in tracemalloc.take_snapshot().filter_traces(ours).statistics("filename"))


def on_disk(folder, *parts):
    return sum(path.stat().st_size for part in parts for path in folder.glob(part) if path.is_file())


def factors(rank, d=D):
    return LowRank(rng.standard_normal((rank, d), np.float32), rng.standard_normal((d, rank), np.float32))


def moments(load=LOAD):
    own = {"rms": 1, "evidence": 3, "trust": 1, "replayed": 1, "count": 1, "base_count": 1}
    arrays = {name: np.ones(size, np.float32) for name, size in own.items()}
    for prefix, rank in (("", load.rank), ("base_", load.base_rank)):
        arrays |= {f"{prefix}{name}": np.ones((rank, load.hidden_dim), np.float32) for name in ("m_A", "v_A")}
    return arrays


def groups(user, patterns=3):
    return ["*", *PATTERN_TYPES[:patterns], *(f"pattern:p{user * 10 + i}" for i in range(patterns))]


def adapter(key):
    names = (
        "kl_to_base",
        "max_token_kl",
        "delta_ratio",
        "logprob_drop",
        "repetition",
        "share",
        "steps",
        "evidence",
    )
    return AdapterRecord(
        key=key,
        version=1,
        parent=None,
        fingerprint=FINGERPRINT,
        weights=LoraWeights(factors(LOAD.rank), factors(LOAD.base_rank)),
        moments=moments(),
        reason="replay",
        metrics=dict.fromkeys(names, 0.123456789),
        feedback_ids=tuple(uuid.uuid4().hex for _ in range(4)),
        created_at=1e9,
    )


class Host:
    """Holds nothing: what is weighed is the learner."""

    hidden_dim, fingerprint = D, FINGERPRINT

    def __init__(self):
        self.names = set()

    async def put_adapter(self, key, version, weights):
        self.names.add(key)

    def holds_adapter(self, key):
        return key in self.names


class Rates:
    micro_lora_rank, base_lora_rank = 2, 4
    micro_lora_lr, base_lora_lr, quality_threshold, ewc_lambda = 1e-3, 1e-4, 0.5, 1000.0
    background_interval_ms = 3_600_000


MANY = [30, pytest.param(200, marks=pytest.mark.slow)]
"""Users with 7 adapters each."""


@pytest.fixture(params=MANY)
async def adapters(tmp_path, request, _unsynced):
    """In the real store."""
    load = dataclasses.replace(LOAD, users=request.param)
    sona = SonaSettings(learner=LearningSettings(keep_versions=1))
    async with create_store(sona, directory=tmp_path / "empty"):
        pass
    async with create_store(sona, directory=tmp_path / "state") as store:
        for user in range(load.users):
            for group in groups(user):
                key = f"model/{pupil('default', f'user-{user}')}/{group}"
                await store.put_adapter(adapter(key))
                await store.set_current(key, 1, reason="replay")
    return tmp_path, sona, load


async def test_adapters_take_on_disk_and_in_memory_what_was_forecast(adapters):
    tmp_path, sona, load = adapters
    told = forecast(load, sona)
    base = on_disk(tmp_path / "empty", "state.sqlite3*")
    files = on_disk(tmp_path / "state", "adapters/*/*")
    near(told["disk", "adapter versions"], files + on_disk(tmp_path / "state", "state.sqlite3*") - base)
    async with create_store(sona, directory=tmp_path / "state") as store:
        for megabytes, awake in ((1, False), (500, True)):
            settings = LearningSettings(adapter_mb=megabytes)
            learner = Learner({}, store, Rates(), settings, expected=["model"])
            host = Host()
            with weighed() as found:
                async with learner:
                    await learner.attach("model", host)
                    lines = learner._state.versions.lines()
                    assert len(lines) == load.users * adapters_of(load.patterns)
                    for line in lines if awake else ():  # as a replay leaves it
                        served = line.served.weights
                        line.fit = LoraWeights(
                            LowRank(served.micro.lora_A, served.micro.lora_B.copy()),
                            LowRank(served.base.lora_A, served.base.lora_B.copy()),
                        )
                        learner._state.versions.shelf.note(line)
                    gc.collect()
                    found.append(tracemalloc.get_traced_memory()[0])
                    budget = learner.budgets()[0]
            small = told["learner", "names of adapters"] + load.users * 2500  # nobody was taught anything yet
            if awake:
                near(told["learner", "adapters"], budget.nbytes)
                near(told["learner", "adapters"] + told["learner", "objects of adapters"] + small, found[0])
                assert len(host.names) == len(lines)
            else:
                assert budget.nbytes <= 1 << 20
                near(small + 35_000, found[0] - budget.nbytes - 5300 * budget.items)  # 35 kB: a learner alone


@pytest.mark.parametrize("users", MANY)
def test_adapters_take_at_the_hosts_what_was_forecast(users):
    torch = pytest.importorskip("torch")
    from sona_stream_adapters.local.adapters import AdapterTable
    from sona_stream_adapters.vllm_plugin.adapters import AdapterTable as WorkerTable

    load = dataclasses.replace(LOAD, users=users)
    record = adapter("model/default/*")
    local, worker = AdapterTable(D, max_bytes=1 << 30), WorkerTable(max_bytes=1 << 30)
    with weighed() as found:
        for user in range(load.users):
            for group in groups(user):
                local.put(f"model/default:user-{user}/{group}", 1, record.weights)
    near(forecast(load)["host", "adapters"], local.nbytes, 0)
    near(forecast(load)["host", "adapters"] + forecast(load)["host", "objects of adapters"], found[0])
    for user in range(users // 10):
        for group in groups(user):
            worker.put(f"model/default:user-{user}/{group}", 1, record.weights)
    near(forecast(load, remote=True)["host", "adapters"] / 10, worker.nbytes, 0)
    assert torch.is_tensor(next(iter(worker)).A)


SAID = "what is the capital city of that country where people speak this language and how many of them live there \
when did the old company begin to sell its products under another name in Europe or America"


def question(n):
    chosen = np.random.default_rng(n).choice(SAID.split(), 10)
    return f"{' '.join(chosen)} number {n}?"


@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.slow)])
async def test_episodes_take_on_disk_and_in_memory_what_was_forecast(tmp_path, count):
    load = Load(users=count // 10, episodes=10, tokens=32, hidden_dim=D)
    sona = SonaSettings(memory=MemorySettings(tenant_episodes=100_000))
    told = forecast(load, sona)
    async with create_store(sona, directory=tmp_path / "empty"):
        pass
    space = HiddenSpace(rng.standard_normal(D, np.float32), np.ones(D, np.float32), "reference-1")
    vectors = rng.standard_normal((count, 256 + 384), np.float32)
    async with create_store(sona, directory=tmp_path / "state") as store:
        memory = EpisodeMemory(store.episode_store, sona.memory, compiled=False)
        async with memory:
            for n in range(count):
                text = f"answer {n}"
                await memory.remember(
                    EpisodeRecord(
                        model="model",
                        fingerprint=FINGERPRINT,
                        tenant="default",
                        user=f"user-{n % (count // 10)}",
                        key_id="k" * 12,
                        request_id=uuid.uuid4().hex,
                        feedback_id=uuid.uuid4().hex,
                        question=Question(question(n)),
                        vectors=QuestionVectors(vectors[n, :256], vectors[n, 256:], None),
                        hidden=rng.standard_normal((32, D), np.float32),
                        token_ids=np.arange(32, dtype=np.int32) + n,
                        space=space,
                        text=EpisodeText(answer=text, body=None),
                    )
                )
            counters = memory.counters()
            assert counters["episodes"] == count
            near(told["disk", "episodes"], counters["bytes"])
            if count > 1024:  # it grows by so many
                near(told["learner", "episodes' index"], counters["index_bytes"])
    near(told["disk", "episodes"], on_disk(tmp_path / "state", "episodes/*.seg"))
    rows = [on_disk(tmp_path / name, "state.sqlite3*") for name in ("empty", "state")]
    near(told["disk", "rows of episodes"], rows[1] - rows[0])
    async with create_store(sona, directory=tmp_path / "state") as store:
        with weighed() as found:  # as after a start, without what writing left behind
            memory = EpisodeMemory(store.episode_store, sona.memory, compiled=False)
            async with memory:
                gc.collect()
                found.append(tracemalloc.get_traced_memory()[0])
        if count > 1024:
            near(told["learner", "episodes' index"], found[0])


def test_episodes_take_at_the_hosts_what_was_forecast():
    pytest.importorskip("torch")
    from sona_stream_adapters.episodes import EpisodeStore

    load = Load(users=200, episodes=10, tokens=64, hidden_dim=D)
    table = EpisodeStore(max_bytes=1 << 30, limit="", hidden_dim=D, vocab_size=1000)
    space = HiddenSpace(np.zeros(D, np.float32), np.ones(D, np.float32), "s")
    states, ids = rng.standard_normal((64, D), np.float32), np.arange(64, dtype=np.int32)
    for n in range(2000):
        table.put(f"e{n}", states, ids, space)
    near(forecast(load)["host", "episodes"], table.nbytes, 0)
    near(forecast(load, remote=True)["host", "episodes"], table.nbytes, 0)


def capture(n, load):
    T = load.tokens
    return Capture(
        request_id=uuid.UUID(int=n).hex,
        fingerprint=FINGERPRINT,
        prompt_ids=np.arange(load.prompt_tokens, dtype=np.int32),
        token_ids=np.arange(T, dtype=np.int32) + n,
        hidden=rng.standard_normal((T, load.hidden_dim), np.float32),
        logprobs=np.zeros(T, np.float32),
        adapter_versions=np.ones(T, np.int32),
        adapter_key="model/default:user-1/*",
    )


async def test_lessons_take_on_disk_and_in_memory_what_was_forecast(tmp_path):
    load = Load(users=8, lessons=32, tokens=24, prompt_tokens=48, hidden_dim=D)
    told = forecast(load)
    sona = SonaSettings()
    async with create_store(sona, directory=tmp_path / "empty"):
        pass
    async with create_store(sona, directory=tmp_path / "state") as store:
        for n in range(load.users * load.lessons):
            key = f"model/default:user-{n % load.users}/CodeGen"
            await store.put_capture(key, capture(n, load), 0.5, feedback_id=uuid.uuid4().hex)
    rows = [on_disk(tmp_path / name, "state.sqlite3*") for name in ("empty", "state")]
    near(told["disk", "lessons"], on_disk(tmp_path / "state", "captures/*") + rows[1] - rows[0])
    async with create_store(sona, directory=tmp_path / "state") as store:
        from sona_stream.engine.learner.lessons import Lesson, LessonBook

        books = []
        with weighed() as found:
            for user in range(load.users):
                book = LessonBook(sona.learner.replay_capacity)
                for one, signal, id_ in await store.captures(f"model/default:user-{user}/CodeGen", limit=256):
                    book.add(Lesson(one, signal, ("*", "CodeGen"), id_))
                books.append(book)
            gc.collect()
        assert sum(map(len, books)) == load.users * load.lessons
        near(told["learner", "lessons"], found[0])


@pytest.mark.parametrize("storage", ["none", "features", "text"])
async def test_requests_take_on_disk_what_was_forecast(tmp_path, storage):
    load = Load(users=100, requests=10, tokens=64, prompt_tokens=64)
    sona = SonaSettings(storage=storage)
    async with create_store(sona, directory=tmp_path / "empty"):
        pass
    async with create_store(sona, directory=tmp_path / "state") as store:
        for n in range(1000):
            store.submit_trajectory(
                Trajectory(
                    request_id=uuid.uuid4().hex,
                    tenant="default",
                    key_id="k" * 12,
                    user=f"user-{n % 100}",
                    requested_model="model",
                    model="model",
                    route=RouteDecision(
                        model="model",
                        reason="pattern_type CodeGen",
                        pattern="p12",
                        pattern_type="CodeGen",
                        similarity=0.8123,
                        propensity=1.0,
                    ),
                    adapter=AdapterRef(key=f"model/default:user-{n % 100}/CodeGen", version=12),
                    completion_id="chatcmpl-" + uuid.uuid4().hex,
                    embedding=rng.standard_normal(256, np.float32),
                    prompt_ids=tuple(range(64)),
                    token_ids=tuple(range(64)),
                    query="q" * 256,
                    body=b"b" * 256,
                    answer="a" * 256,
                    sampling=Sampling(temperature=0.7, max_tokens=256),
                    score=Score(value=0.8, parts={"coherence": 0.9, "logprob": 0.7123, "emptiness": 1.0}),
                    finish_reason="stop",
                    usage=Usage(prompt_tokens=64, completion_tokens=64),
                    started_at=1e9 + n,
                    ttft_s=0.1234,
                    duration_s=1.2345,
                )
            )
    rows = [on_disk(tmp_path / name, "state.sqlite3*") for name in ("empty", "state")]
    near(forecast(load, sona)["disk", "requests"], rows[1] - rows[0], 0.10)


def test_a_pattern_bank_takes_what_was_forecast():
    load = Load(users=1, requests=400)
    engine = SonaEngine.with_config(CONFIG)
    queries = rng.standard_normal((400, 256), np.float32)
    with weighed() as found:
        filled = SonaEngine.with_config(CONFIG)
        for query in queries:
            tid = filled.begin_trajectory(query)
            filled.set_trajectory_route(tid, "model")
            filled.end_trajectory(tid, 0.7)
    recorder = filled._recorder
    slabs = sum(slab.nbytes for pool in (recorder.buffer.queries,) for slab in pool._slabs if slab is not None)
    told = forecast(load)
    assert filled.get_stats()["patterns_learned"] >= CONFIG.pattern_clusters
    near(told["disk", "pattern banks"], len(filled.to_bytes(buffer=False)))
    near(told["learner", "pattern banks"], found[0] + min(slabs, 400 * 256))
    assert engine is not filled


async def test_what_is_counted_of_a_user_takes_what_was_forecast(tmp_path):
    from sona_stream.engine.learner.keys import AdapterKey
    from sona_stream.engine.learner.ledger import Ledger

    load = Load(users=100, patterns=3, lessons=32)
    told = forecast(load)
    async with create_store(SonaSettings(), directory=tmp_path / "empty"):
        pass
    async with create_store(SonaSettings(), directory=tmp_path / "state") as store:
        with weighed() as found:
            ledgers = []
            for user in range(load.users):
                ledger = Ledger(AdapterKey("model", f"default:user-{user}"), 8.0)
                for n in range(load.lessons):
                    ledger.count(uuid.uuid4().hex, ("*", PATTERN_TYPES[n % 3], f"pattern:p{n % 3}"), 0.5)
                ledgers.append(ledger)
        for ledger in ledgers:
            await ledger.save(store)
    rows = [on_disk(tmp_path / name, "state.sqlite3*") for name in ("empty", "state")]
    near(told["disk", "counts"], rows[1] - rows[0])
    near(told["learner", "counts"], found[0])
    assert Feedback


def test_what_is_watched_of_an_adapter_takes_what_was_forecast():
    told, seen = forecast(Load(users=1, patterns=1, hidden_dim=D)), 20
    assert seen < MOST == capacity._WATCHES

    def watch(n):
        one = Watch(CanarySettings(), 1)
        for _ in range(seen):
            ids = tuple(int(token) for token in rng.integers(0, 50_000, 128))
            route, score = RouteDecision(model="", reason=""), Score(value=0.7)
            said = Trajectory(
                request_id="", tenant="", key_id="", model="", route=route, score=score, token_ids=ids
            )
            for version in (1, 2):
                one.answered(version, said)
                one.rated(version, 0.5, uuid.uuid4().hex)
            one.taught(uuid.uuid4().hex)
        return one

    with weighed() as found:
        watches = [watch(n) for n in range(10)]
    keys = adapters_of(1)
    near(told["learner", "watches"], found[0] / len(watches) * keys)
    assert len(packed(watches[0].to_arrays())) <= told["disk", "watches"] / keys <= 1.3 * 44_000
