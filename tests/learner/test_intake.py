"""What is taught while a host is away, or of what a host refuses: nobody else waits, and nothing spins."""

import collections
import dataclasses

import anyio
import pytest
from test_learner_hosts import FarHost, settled
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.inbox import Inbox
from sona_stream.errors import HostError
from sona_stream.events import Feedback, RouteDecision

CAPACITY = 8


class Pending:
    def __init__(self, feedbacks):
        self.waiting, self.reads = list(feedbacks), 0

    async def pending_feedback(self):
        self.reads += 1
        return list(self.waiting)


def feedback(i, model):
    one = f"{model}{i}"
    return Feedback(id=one, request_id=one, tenant="t", key_id="k", kind="rating", quality=1.0)


async def served(inbox, store, away, seconds):
    """Tries of each feedback in that time; those of models that are not away are done."""
    tries = collections.Counter()
    with anyio.move_on_after(seconds):
        while True:
            item = await inbox.next()
            tries[item.feedback.id] += 1
            model = item.feedback.id[0]
            if model in away:
                inbox.put_off(item, None, model=model)
            else:
                store.waiting.remove(item.feedback)
                inbox.finish(item, outcome=None)
    return tries


async def test_more_of_an_away_model_than_the_inbox_holds_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.2)
    many = 3 * CAPACITY + 1
    store = Pending([*(feedback(i, "A") for i in range(many)), *(feedback(i, "B") for i in range(3))])
    inbox = Inbox(CAPACITY, store)
    inbox.look_behind()
    tries = await served(inbox, store, {"A"}, 1.0)
    assert all(tries[f"B{i}"] == 1 for i in range(3)), "they came although A is away"
    assert all(tries[f"A{i}"] for i in range(many)), "each is tried once: only then is known whose it is"
    assert tries.total() - many - 3 <= 3, "then one at a time, after 0.2, 0.4 and 0.8 s"
    assert store.reads <= many // CAPACITY + 6
    inbox.retry("A")
    tries = await served(inbox, store, (), 0.5)
    assert tries == dict.fromkeys([f"A{i}" for i in range(many)], 1)
    assert inbox.idle


async def test_one_that_finds_the_host_there_brings_the_others(monkeypatch):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.2)
    store = Pending(feedback(i, "A") for i in range(3 * CAPACITY))
    inbox = Inbox(CAPACITY, store)
    inbox.look_behind()
    await served(inbox, store, {"A"}, 0.1)
    tries = await served(inbox, store, (), 0.6)
    assert tries.total() == 3 * CAPACITY
    assert not store.waiting


async def test_what_fails_otherwise_waits_its_own_pause_however_much_does(monkeypatch):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.3)
    store = Pending(feedback(i, "A") for i in range(3 * CAPACITY))
    inbox = Inbox(CAPACITY, store)
    inbox.look_behind()
    tries = collections.Counter()
    with anyio.move_on_after(0.25):
        while True:
            item = await inbox.next()
            tries[item.feedback.id] += 1
            inbox.put_off(item, ValueError("no"))
    assert set(tries.values()) == {1}
    assert len(tries) == 3 * CAPACITY


async def test_a_model_that_is_away_keeps_no_other_waiting(monkeypatch):
    """As the program does it: more judgements of the one than two inboxes hold, and then one of the other."""
    away, world = FarHost(), World()
    settings = LearningSettings(inbox=4, replay_every=10_000)
    async with Learner({"toy": world.host, "far": away}, world.store, Rates(), settings, "feedback") as learner:
        away.away = True
        route = RouteDecision(model="far", reason="test")
        asked = [world.ask(route=route)[0] for _ in range(20)]
        for one in asked:
            trajectory = world.store.trajectories[one]
            world.store.trajectories[one] = dataclasses.replace(trajectory, model="far")
            await learner.learn(world.judge(one, 1.0))
        last = world.judge(world.ask()[0], 1.0)
        await learner.learn(last)
        await settled(lambda: last.id in world.store.outcomes)
        await anyio.sleep(0.2)
        assert learner.stats()["counters"]["waited_for_host"] <= 21
        assert len(world.store.outcomes) == 1
        away.captures, away.away = world.host.captures, False
        learner.retry("far")
        await settled(lambda: len(world.store.outcomes) == 21)


class SmallContext(ToyHost):
    async def encode(self, prompt_ids, answer, **more):
        if isinstance(answer, str) and 20 < len(answer) < 200:
            raise HostError("prompt_ids and answer have 9000 tokens; the model's context is 8192")
        return await super().encode(prompt_ids, answer, **more)


@pytest.mark.parametrize("remembers", [False, True])
async def test_what_the_host_does_not_take_has_an_outcome_that_says_why(remembers, caplog):
    world = World(SmallContext())

    async def remember(feedback):
        raise HostError("nor is it remembered")

    more = {"remember": remember} if remembers else {}
    settings = LearningSettings(replay_every=10_000)
    async with Learner({"toy": world.host}, world.store, Rates(), settings, "feedback", **more) as learner:
        correction = world.judge(world.ask()[0], None, kind="correction", correction="x" * 50)
        outcome = await learner.learn(correction, wait=True)
        assert outcome.status == "skipped"
        assert "context is 8192" in outcome.reason
        assert world.store.outcomes[correction.id] == outcome
        assert learner.stats()["counters"].get("failures", 0) == 0
        assert (await learner.learn(correction, wait=True)) == outcome
        short = world.judge(world.ask()[0], None, kind="correction", correction="abc")
        assert (await learner.learn(short, wait=True)).status == "published"
