"""Answers stream from the loop that replays run on: what a full book costs is paid on threads."""

import threading
import time

import anyio
from toy import Rates, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner, appraisal
from sona_stream.events import RouteDecision

FULL = 256
ROUTE = RouteDecision(model="toy", reason="test", pattern_type="CodeGen")


async def beating(gaps):
    last = time.perf_counter()
    while True:
        await anyio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def test_a_replay_of_a_full_book_never_holds_the_loop_for_as_long_as_it_weighs_it(monkeypatch):
    took, threads = [], set()

    def slowed(real):
        def one(*args):
            began = time.perf_counter()
            found = real(*args)
            time.sleep(0.2)
            took.append(time.perf_counter() - began)
            threads.add(threading.get_ident())
            return found

        return one

    for name in ("dependence", "foretold"):
        monkeypatch.setattr(appraisal, name, slowed(getattr(appraisal, name)))
    world = World()
    settings = LearningSettings(replay_every=10_000, replay_steps=1, min_feedback=8, replay_capacity=FULL)
    async with Learner({"toy": world.host}, world.store, Rates(), settings, "feedback") as learner:
        await learner.freeze()
        for i in range(FULL):
            asked, _ = world.ask(prompt=(i % 9, i % 5, 4), route=ROUTE)
            await learner.learn(world.judge(asked, float(i % 2)), wait=True)
        gaps = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beating, gaps)
            await learner.thaw()
            await learner.settle()
            tasks.cancel_scope.cancel()
        assert learner.stats()["counters"]["replays"] >= 1
    assert len(took) >= 3, "everything, and the type beside it"
    assert threading.get_ident() not in threads
    assert max(gaps) < sum(sorted(took)[:2])
