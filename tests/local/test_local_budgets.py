"""What a local model holds for others is bounded: who makes room, and who never does."""

import asyncio
import dataclasses
import logging

import numpy as np
import pytest
from tiny_model import ask, collect, running

from sona_stream.budgets import BoundedHost, BudgetKeeper
from sona_stream.errors import HostError
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights, LowRank
from sona_stream_adapters.local.adapters import AdapterTable

D = 48
SIZE = 8 * D * 2


def weights(seed=0, rank=2, by=0.3):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((rank, D)), by * rng.standard_normal((D, rank))
    return LoraWeights(LowRank(A.astype(np.float32), B.astype(np.float32)))


def ref(key, **more):
    return AdapterRef(key=key, version=1, **more)


def test_the_least_recently_used_makes_room_and_none_that_an_answer_uses():
    table = AdapterTable(D, max_bytes=3 * SIZE)
    for key in "abc":
        table.put(key, 1, weights())
    assert table.nbytes == 3 * SIZE
    assert table.holds("a")  # counts as used
    table.begin(ref("b"))
    table.put("d", 1, weights())
    assert [key for key in "abcd" if table.holds(key)] == ["a", "b", "d"]
    assert (table.nbytes, len(table), table.evictions) == (3 * SIZE, 3, 1)
    table.begin(ref("b"))
    table.end(ref("b"))
    table.put("e", 1, weights())
    table.put("f", 1, weights())
    assert table.current(ref("b")) is not None, "an answer under way still uses it"
    table.end(ref("b"))
    table.put("g", 1, weights())
    table.put("h", 1, weights())
    assert table.current(ref("b")) is None
    table.drop("h")
    table.drop("h")
    assert table.nbytes == 2 * SIZE


def test_what_does_not_fit_is_refused_and_nothing_leaves_for_it():
    table = AdapterTable(D, max_bytes=3 * SIZE)
    for key in "abc":
        table.put(key, 1, weights())
    table.begin(ref("a"))
    table.begin(ref("b"))
    with pytest.raises(
        HostError, match=r"needs \d+ bytes; litellm_params.adapter_mb allows \d+, and answers under"
    ):
        table.put("big", 1, weights(rank=4))
    assert [key for key in "abc" if table.holds(key)] == ["a", "b", "c"]
    assert table.evictions == 0
    table.put("a", 2, weights(1))  # a new version takes the place of the old one
    assert (len(table), table.nbytes) == (3, 3 * SIZE)
    table.put("c", 2, weights(rank=1))
    assert table.nbytes == 5 * SIZE // 2


async def test_a_running_answer_keeps_its_adapter_and_the_host_tells_its_budgets(tiny_folder, caplog):
    caplog.set_level(logging.WARNING)
    async with running(tiny_folder, adapter_mb=1) as backend:
        host = backend.host
        assert isinstance(host, BoundedHost)
        assert isinstance(host, BudgetKeeper)
        await host.put_adapter("m/t/*", 1, weights())
        plain = await collect(backend, ask(id="plain", adapter=ref("m/t/*"), max_tokens=64))
        assert plain.head.adapter == ref("m/t/*")
        async with backend(ask(id="held", adapter=ref("m/t/*"), max_tokens=64)) as events:
            await anext(events)
            for n in range(2000):  # 1.5 MB
                await host.put_adapter(f"m/{n}/*", 1, weights())
            ids = [t async for event in events for piece in getattr(event, "pieces", ()) for t in piece.token_ids]
        assert ids == plain.ids()
        assert host.holds_adapter("m/t/*")
        adapters, episodes, captures = host.budgets()
        assert adapters.what == "adapters"
        assert adapters.nbytes <= adapters.limit == 1 << 20
        assert adapters.items + adapters.evictions == 2001
        assert (episodes.items, episodes.setting) == (0, "litellm_params.episode_mb")
        assert captures.items == 2
        for n in range(2000):
            await host.put_adapter(f"m/{n}/*", 1, weights())
        assert not host.holds_adapter("m/t/*")
        bare = await collect(backend, ask(id="bare", adapter=ref("m/t/*"), max_tokens=64))
        assert bare.head.adapter is None  # who asks the host puts it first, see `AdapterResolver.bring`
        assert sum("litellm_params.adapter_mb" in record.message for record in caplog.records) == 1
        await asyncio.sleep(0)


async def test_an_adapter_makes_no_room_while_a_long_body_is_tokenized(tiny_folder):
    async with running(tiny_folder) as backend:
        host = backend.host
        own, other = ref("m/t/*"), weights(1)
        backend._engine.adapters.max_bytes = int(1.5 * weights().nbytes)
        await host.put_adapter(own.key, 1, weights())
        request = dataclasses.replace(ask(id="long", adapter=own), body=b"x" * 30_000)

        async def teach_somebody_else():
            await asyncio.sleep(0)  # the body is in its thread
            with pytest.raises(HostError, match="adapter_mb"):
                await host.put_adapter("m/other/*", 1, other)

        answer, _ = await asyncio.gather(collect(backend, request), teach_somebody_else())
        assert answer.head.adapter == own
        await host.put_adapter("m/other/*", 1, other)
        assert not host.holds_adapter(own.key), "the answer holds it no more"
