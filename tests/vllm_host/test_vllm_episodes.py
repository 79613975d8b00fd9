"""Episodes on a server: put once, bound by name, put again after a restart."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from fake_vllm_server import KEY, MODEL, Client, D
from toy import V

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import HostAway, HostError
from sona_stream.events import EpisodeRef, Request
from sona_stream.lora import HiddenSpace
from sona_stream_adapters.text import reference_ids
from sona_stream_adapters.vllm import create_backend
from sona_stream_adapters.vllm.served_episodes import ServedEpisodes

SPACE = HiddenSpace(np.full(D, 0.5, np.float32), np.full(D, 2.0, np.float32), "v1")


@contextlib.asynccontextmanager
async def running(server):
    entry = Deployment(
        model_name="m", provider="vllm", upstream_model=MODEL, api_base=server.base, params={"control_key": KEY}
    )
    async with create_backend(entry, SonaSettings()) as backend:
        await backend.probe()
        yield backend


def ask(*refs, id="r1", **xargs):
    extra = b', "vllm_xargs": {"sona_episodes": ["stolen"], "sona_gates": [1.0], "mine": 1}' if xargs else b""
    body = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "hello"}]%s}' % extra
    named = tuple(EpisodeRef(key=key, gate=gate) for key, gate in refs)
    return Request(
        id=id, endpoint="chat.completions", model="m", body=body, stream=True, episodes=named, learn=False
    )


async def sent(backend, server, request):
    """The arguments that reached the server."""
    async with backend(request) as events:
        async for _ in events:
            pass
    return server.app.seen[-1].get("vllm_xargs") or {}


def answer(seed=0, tokens=4, size=1.0):
    r = np.random.default_rng(seed)
    return (r.standard_normal((tokens, D)) * size).astype(np.float32), r.integers(0, V, tokens).astype(np.int32)


async def test_what_is_there_is_bound_and_does_not_travel_twice(vllm):
    async with running(vllm) as backend:
        hidden, ids = answer()
        await backend.host.put_episode("e", hidden, ids, SPACE)
        await backend.host.put_episode("e", hidden, ids, SPACE)
        assert vllm.worker.put_log == [("e", "episode")]
        arrays, facts = vllm.worker.episodes["e"]
        np.testing.assert_allclose(arrays["hidden"].astype(np.float32), hidden, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(arrays["token_ids"], ids)
        np.testing.assert_array_equal(arrays["mean"], SPACE.mean)
        np.testing.assert_array_equal(arrays["spread"], SPACE.spread)
        assert (facts["space"], facts["fingerprint"]) == ("v1", "toy")
        got = await sent(backend, vllm, ask(("e", 0.75), ("none", 1.0), ("e", 0.0)))
        assert got == {"sona_episodes": ["e"], "sona_gates": [0.75]}
        assert await sent(backend, vllm, ask(("none", 1.0))) == {}
        assert await sent(backend, vllm, ask(mine=1)) == {"mine": 1}
        await backend.host.put_episode("e", *answer(1), SPACE)  # another answer under the same name
        assert vllm.worker.put_log == [("e", "episode")] * 2
        assert backend.host.holds_episode("e")
        await backend.host.drop_episode("e")
        await backend.host.drop_episode("e")
        assert not backend.host.holds_episode("e")
        assert vllm.worker.episodes == {}
        assert await sent(backend, vllm, ask(("e", 1.0))) == {}


async def test_they_are_put_before_the_first_request_after_a_restart(vllm):
    async with running(vllm) as backend:
        host = backend.host
        for i in range(3):
            await host.put_episode(f"e{i}", *answer(i), SPACE)
        space = await host.hidden_space()
        vllm.stop()
        with pytest.raises(HostAway):
            await host.put_episode("late", *answer(9), SPACE)
        await host.drop_episode("e2")  # the server need not hear of it
        vllm.start()
        got = await sent(backend, vllm, ask(("e1", 1.0), ("e2", 1.0)))
        assert got == {"sona_episodes": ["e1"], "sona_gates": [1.0]}
        assert vllm.worker.put_log == [("e1", "episode")]  # the others when somebody wants them
        assert len(vllm.app.seen) == 1  # nothing came before the put
        assert await host.hidden_space() is space
        await host.put_episode("e0", *answer(0), SPACE)
        assert vllm.worker.put_log == [("e1", "episode"), ("e0", "episode")]


async def test_an_evicted_one_is_put_again_when_it_is_wanted(vllm):
    vllm.worker.episode_budget = 1
    async with running(vllm) as backend:
        await backend.host.put_episode("a", *answer(0), SPACE)
        await backend.host.put_episode("b", *answer(1), SPACE)
        assert list(vllm.worker.episodes) == ["b"]
        assert (await sent(backend, vllm, ask(("a", 1.0))))["sona_episodes"] == ["a"]
        assert list(vllm.worker.episodes) == ["a"]


async def test_what_is_forgotten_is_dropped_at_the_server_though_it_is_not_kept_here(vllm):
    """An answer under way may still draw on it."""
    async with running(vllm) as backend:
        host = backend.host
        await host.put_episode("a", *answer(0), SPACE)
        host._episodes.max_bytes = 1
        await host.put_episode("b", *answer(1), SPACE)
        assert not host.holds_episode("a")
        assert set(vllm.worker.episodes) == {"a", "b"}
        await host.drop_episode("a")
        assert set(vllm.worker.episodes) == {"b"}
        calls = vllm.worker.calls.count("sona_drop_episode")
        await host.drop_episode("a")
        await host.drop_episode("never put")
        assert vllm.worker.calls.count("sona_drop_episode") == calls


async def test_a_refusal_is_told_and_a_request_goes_without(vllm):
    async with running(vllm) as backend:
        host = backend.host
        vllm.worker.toy.fingerprint = "other"  # the worker refuses what was made for "toy"
        with pytest.raises(HostError, match="made for toy"):
            await host.put_episode("e", *answer(), SPACE)
        assert await host.bind_episodes([EpisodeRef(key="e", gate=1.0)]) == {}
        vllm.worker.toy.fingerprint = "toy"
        await host.put_episode("e", *answer(), SPACE)
        host._episodes.lost()
        vllm.worker.toy.fingerprint = "other"
        assert await host.bind_episodes([EpisodeRef(key="e", gate=1.0)]) == {}


async def test_the_space_is_of_the_reference_text_as_the_server_reads_it(vllm):
    async with running(vllm) as backend:
        lead, rest = reference_ids(Client(vllm.worker).get_tokenizer(), 255)
        own = await vllm.worker.toy.encode(lead, rest)
        space = await backend.host.hidden_space()
        np.testing.assert_allclose(space.mean, own.hidden.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(space.spread, own.hidden.std(0), rtol=1e-5)
        assert space.version == f"reference-1:{len(rest)}"
        assert vllm.worker.calls.count("sona_hidden_space") == 1
        assert await backend.host.hidden_space() is space
        assert vllm.worker.calls.count("sona_hidden_space") == 1
        assert vllm.worker.toy.captures == {}  # nothing of it stays


async def test_memory_marks_travel_with_a_capture(vllm):
    """What memory decided is known wherever the capture is: the server's copy, or another one encoded anew."""
    from sona_stream_adapters.vllm_plugin import codec

    async with running(vllm) as backend:
        async with backend(dataclasses.replace(ask(), learn=True)) as events:
            async for _ in events:
                pass
        toy = vllm.worker.toy
        memory = np.linspace(0, 1, len(toy.captures["r1"]), dtype=np.float32)
        toy.captures["r1"] = dataclasses.replace(toy.captures["r1"], memory=memory)
        capture = await backend.host.capture("r1")
        np.testing.assert_array_equal(capture.memory, memory)
        parts = codec.capture_parts(capture, hidden=False)
        with pytest.raises(codec.CodecError, match="memory must have"):
            codec.capture_from({**parts[0], "memory": memory[:-1]}, parts[1], hidden_dim=D)


async def test_what_is_kept_here_is_bounded():
    class Link:
        def __init__(self):
            self.put = []

        async def tensors(self, method, path, body, **query):
            self.put.append(query["key"])
            return b"{}"

    link = Link()
    one = len(ServedEpisodes(link, "f")._blob(*answer(), SPACE))
    served = ServedEpisodes(link, "f", max_bytes=2 * one)
    for i in range(3):
        await served.set(f"e{i}", *answer(i), SPACE)
    assert len(served) == 2
    assert await served.bind([EpisodeRef(key="e0", gate=1.0)]) == {}
    await served.set("large", *answer(9, size=1e6), SPACE)  # beyond half precision: travels as it is
    assert link.put == ["e0", "e1", "e2", "large"]
