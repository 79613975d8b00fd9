"""What the proxy keeps of a server's adapters is bounded; what went is asked for again."""

import numpy as np
import pytest

from sona_stream.errors import HostError
from sona_stream.events import AdapterRef
from sona_stream.lora import LoraWeights, LowRank
from sona_stream_adapters.vllm.served import ServedAdapters

A = np.zeros((2, 8), np.float32)
WEIGHTS = LoraWeights(LowRank(A, A.T))


async def test_the_least_recently_used_leave_and_are_not_bound():
    given = []

    async def put(name, entry):
        given.append(name)
        return ["a"] if name == "d" else []

    served = ServedAdapters(put, max_bytes=3 * WEIGHTS.nbytes)
    for name in "abc":
        await served.set(name, 1, WEIGHTS)
    assert served.holds("a")
    await served.set("d", 1, WEIGHTS)
    assert [name for name in "abcd" if served.holds(name)] == ["a", "c", "d"]
    assert (served.nbytes, served.evictions, len(served)) == (3 * WEIGHTS.nbytes, 1, 3)
    assert await served.bind(AdapterRef(key="b", version=1)) is None
    assert await served.bind(AdapterRef(key="a", version=1)) is not None  # the server let it go for "d"
    assert given == [*"abcd", "a"]
    assert served.drop("a")
    assert not served.drop("a")
    assert served.nbytes == 2 * WEIGHTS.nbytes


async def test_a_refusal_counts_for_nothing():
    refuse = False

    async def put(name, entry):
        if refuse:
            raise HostError("no")
        return []

    served = ServedAdapters(put)
    await served.set("a", 1, WEIGHTS)
    refuse = True
    for name in "ab":
        with pytest.raises(HostError):
            await served.set(name, 2, WEIGHTS)
    assert (served.nbytes, len(served)) == (WEIGHTS.nbytes, 1)
