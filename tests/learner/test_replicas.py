"""Several replicas of one model as one host: who is asked what, and what those get who were away."""

from __future__ import annotations

import numpy as np
import pytest
from toy import D, ToyHost

from sona_stream.app.replicas import replicas_of
from sona_stream.errors import CaptureGone, HostAway, HostError, NotAdapted
from sona_stream.lora import LoraWeights, LowRank, TokenSignal


class Replica(ToyHost):
    """One that can be away."""

    away = False

    def __getattribute__(self, name):
        calls = ("put_adapter", "drop_adapter", "capture", "encode", "gradient", "evaluate", "release")
        if name in calls and object.__getattribute__(self, "away"):
            raise HostAway("gone for now")
        return object.__getattribute__(self, name)

    async def hidden_space(self):
        self.calls.append("hidden_space")
        return "space"

    async def put_episode(self, key, hidden, token_ids, space):
        self.calls.append(f"episode {key}")

    def holds_episode(self, key):
        return self.calls[-1] == f"episode {key}"

    async def drop_episode(self, key):
        self.calls.append(f"no episode {key}")


def weights(seed=0):
    rng = np.random.default_rng(seed)
    A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, D), (D, 2)))
    return LoraWeights(LowRank(A, B))


@pytest.fixture
async def three():
    hosts = [Replica() for _ in range(3)]
    replicas = replicas_of("m", hosts[0])
    replicas.update(hosts)
    await replicas.complete()
    return replicas, hosts


def versions(hosts):
    return [{key: version for key, (version, _) in host.adapters.items()} for host in hosts]


async def test_every_one_serves_the_same(three):
    replicas, hosts = three
    assert (replicas.hidden_dim, replicas.fingerprint) == (D, "toy")
    await replicas.put_adapter("k", 1, weights())
    assert versions(hosts) == [{"k": 1}] * 3
    await replicas.put_episode("e", np.zeros((1, D), np.float32), np.zeros(1, np.int32), "space")
    assert replicas.holds_episode("e")
    await hosts[1].drop_episode("e")
    assert not replicas.holds_episode("e")
    await hosts[1].put_episode("e", None, None, None)
    await replicas.drop_episode("e")
    assert all(host.calls[-2:] == ["episode e", "no episode e"] for host in hosts)
    await replicas.drop_adapter("k")
    assert versions(hosts) == [{}] * 3
    assert await replicas.hidden_space() == "space"


async def test_one_that_was_away_gets_what_it_missed_before_it_counts(three):
    replicas, hosts = three
    await replicas.put_adapter("k", 1, weights())
    hosts[1].away = True
    await replicas.put_adapter("k", 2, weights(1))
    await replicas.put_adapter("other", 1, weights(2))
    assert not replicas.is_complete(hosts[1])
    await replicas.complete()
    assert not replicas.is_complete(hosts[1])
    hosts[1].away = False
    await replicas.complete()
    assert replicas.is_complete(hosts[1])
    late = Replica()
    replicas.update([*hosts, late])
    assert not replicas.is_complete(late)
    await replicas.complete()
    assert versions([*hosts, late]) == [{"k": 2, "other": 1}] * 4
    replicas.update([late])
    assert not replicas.is_complete(hosts[0])


async def test_nobody_there(three):
    replicas, hosts = three
    for host in hosts:
        host.away = True
    with pytest.raises(HostAway):
        await replicas.put_adapter("k", 1, weights())
    with pytest.raises(HostAway):
        await replicas.encode([1], [2])
    replicas.update([])
    with pytest.raises(HostAway):
        await replicas.capture("r")
    with pytest.raises(HostAway):
        await replicas.drop_adapter("k")


async def test_what_one_refuses_none_serves(three):
    replicas, hosts = three
    await replicas.put_adapter("k", 1, weights())
    hosts[2].refuse_put = True
    for key in ("k", "new"):
        with pytest.raises(HostError):
            await replicas.put_adapter(key, 2, weights(1))
    assert versions(hosts) == [{"k": 1}] * 3


async def test_the_one_that_answered_is_asked_and_computes(three):
    replicas, hosts = three
    hosts[1].answer("r1", [1, 2])
    hosts[2].answer("r2", [1, 2])
    one, two = await replicas.capture("r1"), await replicas.capture("r2")
    for host in hosts:
        host.calls.clear()
    ones = [np.ones(len(one), np.float32)]
    await replicas.gradient([one], TokenSignal(weights(), ones))
    await replicas.gradient([two], TokenSignal(weights(), ones))
    assert [host.calls for host in hosts] == [[], ["gradient"], ["gradient"]]
    await replicas.evaluate([one, two], weights())  # of two: the first one, whoever answered
    assert hosts[0].calls == ["evaluate"]
    hosts[1].away = True
    await replicas.gradient([one], TokenSignal(weights(), ones))
    assert hosts[0].calls == ["evaluate", "gradient"]
    made = await replicas.encode([1], [2, 3], request_id="e")
    assert made.request_id == "e"
    assert (await replicas.penalty([made], weights(), weights(1))).tokens == 2


async def test_what_cannot_be_captured(three, monkeypatch):
    replicas, hosts = three
    with pytest.raises(CaptureGone):
        await replicas.capture("nobody's")

    async def still_running(request_id):
        raise HostAway("it is still being answered")

    async def unserved(request_id):
        raise NotAdapted("the hook failed")

    monkeypatch.setattr(hosts[1], "capture", still_running)
    with pytest.raises(HostAway):
        await replicas.capture("r")
    monkeypatch.setattr(hosts[2], "capture", unserved)
    with pytest.raises(NotAdapted):
        await replicas.capture("r")
