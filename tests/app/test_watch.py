"""Who is asked how often, and what an ill deployment means for the others."""

import asyncio
import contextlib
import math

import pytest

from sona_stream.app.upstream_models import UpstreamModels
from sona_stream.app.watch import Watch
from sona_stream.errors import HostAway, ModelUnavailable, NotFound, NotReady, UpstreamError

BUSY = UpstreamError("the upstream answers 429", retryable=True)


class Asked:
    """A backend that has one answer to a probe, and counts them."""

    adaptable = False

    def __init__(self, problem=None):
        self.problem, self.times = problem, 0

    async def probe(self):
        self.times += 1
        if self.problem is not None:
            raise self.problem


class Hanging(Asked):
    async def probe(self):
        self.times += 1
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def watching(**groups):
    watch = Watch(groups, interval=60)
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    try:
        yield watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_one_that_loads_is_asked_often_and_the_others_are_not(monkeypatch):
    monkeypatch.setattr("sona_stream.app.watch._LOADING_POLL_S", 0.01)
    loading, well, ill, hanging = Asked(NotReady("loading")), Asked(), Asked(BUSY), Hanging()
    async with watching(a=[loading], b=[well, ill], c=[hanging]) as watch:
        await until(lambda: loading.times > 5)
        assert [one.times for one in (well, ill, hanging)] == [1, 1, 1]
        with pytest.raises(NotReady, match="loading"):
            watch.check()


@pytest.mark.parametrize("problem", [BUSY, HostAway("its hidden states are out of reach now")])
async def test_an_ill_upstream_leaves_the_program_ready(monkeypatch, problem):
    monkeypatch.setattr("sona_stream.app.watch._LOADING_POLL_S", 0.01)
    ill = Asked(problem)
    async with watching(a=[ill], b=[Asked()]) as watch:
        await until(lambda: watch.answers("b"))
        watch.check()
        assert not watch.answers("a")
        assert watch.view() == {"a": [str(problem)], "b": ["ready"]}
        await asyncio.sleep(0.05)
        assert ill.times == 1


async def test_a_model_whose_hidden_states_alone_are_out_of_reach_answers():
    async with watching(a=[Asked(HostAway("its hidden states are out of reach now"))]) as watch:
        await until(lambda: "not asked" not in str(watch.view()))
        watch.check()
        assert not watch.answers("a"), "no host of it can be had"


async def test_with_none_that_answers_it_is_not_ready():
    async with watching(a=[Asked(BUSY)], b=[Asked(ModelUnavailable("gone"))]) as watch:
        await until(lambda: "not asked" not in str(watch.view()))
        with pytest.raises(NotReady, match=r"no backend answers: .*429; gone"):
            watch.check()


class Lister:
    def __init__(self, *names):
        self.told = list(names)

    async def list_models(self):
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


async def test_what_an_ill_upstream_listed_before_is_still_known():
    now = iter(range(0, 1000, 100))
    first, second = Lister("a"), Lister("b")
    models = UpstreamModels([first, second], clock=lambda: next(now, math.inf))
    assert await models.names() == ("a", "b")
    first.told = BUSY
    assert await models.names() == ("a", "b")
    second.told = ["c"]
    assert await models.to_route_to() == ("a", "c")


@pytest.mark.parametrize(("error", "raised"), [(BUSY, NotReady), (UpstreamError("it answers 401"), NotFound)])
async def test_a_list_that_was_never_known_is_not_ready_or_not_told(error, raised):
    lister = Lister()
    models = UpstreamModels([lister])
    assert await models.to_route_to() == (), "it lists none"
    lister.told = error
    models = UpstreamModels([lister])
    with pytest.raises(raised, match=str(error)):
        await models.to_route_to()
