"""What its giver takes back leaves book, ledger and weights, whoever is away and whatever is under way."""

import time

import anyio
import pytest
from test_learner_hosts import FarHost, settled
from test_learner_life import same
from toy import Rates, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import AdapterKey, Learner
from sona_stream.engine.learner.gates import Verdict
from sona_stream.errors import NotFound
from sona_stream.events import AdapterRef, RouteDecision

KEY = "toy/default/*"
ROOT = AdapterKey("toy", "default")
CODE = RouteDecision(model="toy", reason="test", pattern_type="CodeGen")
SETTINGS = LearningSettings(replay_every=4, replay_steps=4)
LATE = LearningSettings(replay_every=10_000, replay_steps=4)


async def remember(feedback):
    return "ep" if feedback.kind == "correction" else ""


def learner_of(world, settings=LATE, hosts=None, **more):
    hosts = {"toy": world.host} if hosts is None else hosts
    more = {"expected": ("toy",), **more}
    return Learner(hosts, world.store, Rates(), settings, "feedback", remember=remember, **more)


class Given:
    """A judgement, and when it came."""

    def __init__(self, world, quality=None, text="abcabc", route=None):
        kind = "rating" if text is None else "correction"
        self.request_id, _ = world.ask(route=route)
        self.feedback = world.judge(self.request_id, quality, kind=kind, correction=text)
        self.id, self.at = self.feedback.id, time.time()

    async def learned(self, learner):
        outcome = await learner.learn(self.feedback, wait=True)
        await anyio.sleep(0.002)  # the next one comes later by any clock
        return outcome

    async def taken_back(self, learner):
        await learner.unlearn("toy", "default", self.id, request_id=self.request_id, given_at=self.at)


async def replayed(learner):
    await learner.tick()
    await learner.settle()


async def lessons(learner):
    return [one.feedback_id for one in await learner._state.book(ROOT)]


async def test_a_correction_changes_the_next_replay_and_leaves_book_ledger_and_weights():
    """As if it had never been: the twin is never given it."""

    async def run(*, given):
        world = World()
        async with learner_of(world) as learner:
            for text in ("abc", "cab"):
                await Given(world, text=text).learned(learner)
            await replayed(learner)
            before = world.host.adapters[KEY]
            wrong = Given(world, text="lmlm")
            if given:
                assert (await wrong.learned(learner)).status == "accepted"
                await replayed(learner)
                assert not same(world.host.adapters[KEY][1], before[1])
                assert wrong.id in world.store.records[KEY, 2].feedback_ids
                await wrong.taken_back(learner)
                assert wrong.id not in await lessons(learner)
                await learner.settle()
                assert same(world.store.records[KEY, 1].weights, before[1])
                assert world.store.records[KEY, 2].status == "withdrawn"
            await Given(world, text="abc").learned(learner)
            await replayed(learner)
            served = world.host.adapters[KEY]
        async with learner_of(world) as learner:
            assert wrong.id not in await lessons(learner)
            ledger = await learner._state.ledger(ROOT)
            assert ledger.withdrawn(wrong.id) is given
            assert ledger.undone == {}
        last = world.store.records[KEY, served[0]]
        assert wrong.id not in last.feedback_ids
        return last.parent, len(world.store.records), served[1]

    (parent, made, gone), (_, without, never) = await run(given=True), await run(given=False)
    assert made > without
    assert parent >= 1
    # Noise apart (a replay's draws go by its version's number), the same lessons were fitted from the same start.
    assert float(abs(gone.micro.lora_B - never.micro.lora_B).max()) < 0.5 * float(abs(never.micro.lora_B).max())


async def test_with_nothing_left_to_weigh_it_goes_back_to_the_version_before_or_to_none():
    world = World()
    async with learner_of(world) as learner:
        only = Given(world)
        await only.learned(learner)
        await replayed(learner)
        assert learner.stats()["served"] == {KEY: 1}
        await only.taken_back(learner)
        await learner.settle()
        assert learner.stats()["served"] == {}
        assert KEY not in world.host.adapters
        rated = Given(world, 1.0, text=None)
        assert (await rated.learned(learner)).status == "published"
        served = learner.stats()["served"]
        fixed = Given(world)
        await fixed.learned(learner)
        await replayed(learner)
        assert learner.stats()["served"] != served
        await fixed.taken_back(learner)
        await learner.settle()
        [version] = learner.stats()["served"].values()
        assert [world.store.records[KEY, version].parent] == list(served.values()), "from the rating on"
        assert await lessons(learner) == [rated.id]


async def test_a_refit_that_no_gate_lets_through_leaves_the_version_before():
    world = World()
    async with learner_of(world) as learner:
        await Given(world, text="abc").learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await replayed(learner)

        async def refuse(*_):
            return Verdict("kl", "too far", {})

        learner._state.gate = refuse
        await wrong.taken_back(learner)
        await learner.settle()
        assert learner.stats()["served"] == {KEY: 1}
        assert learner.stats()["gates"]


async def test_what_was_taken_back_before_anybody_came_to_it_is_never_learned():
    world = World()
    async with learner_of(world) as learner:
        early = Given(world)
        await early.taken_back(learner)
        outcome = await early.learned(learner)
        assert (outcome.status, outcome.reason) == ("skipped", "taken back before it was learned")
        await replayed(learner)
        assert learner.stats()["served"] == {}
        assert await lessons(learner) == []
        assert world.store.kept == {}


async def test_one_that_only_waited_for_a_replay_costs_nobody_a_version():
    world = World()
    async with learner_of(world) as learner:
        await Given(world, text="abc").learned(learner)
        await replayed(learner)
        puts = len(world.host.put_log)
        waiting = Given(world, text="lmlm")
        await waiting.learned(learner)
        await waiting.taken_back(learner)
        await replayed(learner)
        assert len(world.host.put_log) == puts
        assert learner.stats()["served"] == {KEY: 1}
        assert waiting.id not in await lessons(learner)


async def test_one_that_is_taken_back_while_it_is_learned_is_gone_when_that_ends():
    world = World()
    async with learner_of(world) as learner:
        rated = Given(world, 1.0, text=None)
        real = world.host.evaluate

        async def evaluate(captures, weights):
            world.host.evaluate = real
            await rated.taken_back(learner)
            return await real(captures, weights)

        world.host.evaluate = evaluate
        await rated.learned(learner)
        await learner.settle()
        assert learner.stats()["served"] == {}
        assert await lessons(learner) == []


@pytest.mark.parametrize("when", ["gradient", "evaluate", "put_adapter"])
async def test_a_running_replay_never_leaves_what_was_taken_back(when):
    world = World()
    async with learner_of(world) as learner:
        kept, wrong = Given(world, text="abc"), Given(world, text="lmlm")
        for one in (kept, wrong):
            await one.learned(learner)
        real = getattr(world.host, when)

        async def call(*args):
            setattr(world.host, when, real)
            await wrong.taken_back(learner)
            return await real(*args)

        setattr(world.host, when, call)
        await replayed(learner)
        [version] = learner.stats()["served"].values()
        record = world.store.records[KEY, version]
        assert record.feedback_ids == (kept.id,)
        assert record.parent is None, "nothing of it but from before"
        assert await lessons(learner) == [kept.id]


@pytest.mark.parametrize("restarts", [False, True])
async def test_with_the_host_away_it_is_taken_back_for_good(restarts):
    """The weights follow when the host comes, though the program has ended in between."""
    host = FarHost()
    world = World(host)
    async with learner_of(world) as learner:
        kept = Given(world, text="abc")
        await kept.learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await replayed(learner)
        assert learner.stats()["served"] == {KEY: 2}
        host.away = True
        if not restarts:
            await wrong.taken_back(learner)
            await learner.settle()
            host.away = False
            learner.retry("toy")
            await settled(lambda: learner.stats()["served"] != {KEY: 2})
            await learner.settle()
            [version] = learner.stats()["served"].values()
            assert wrong.id not in world.store.records[KEY, version].feedback_ids
            assert world.store.records[KEY, version].parent in (None, 1)
            return
    async with learner_of(world, hosts={}) as learner:
        assert learner._state.books.get(ROOT) is None, "nor is the book in memory"
        await wrong.taken_back(learner)
    async with learner_of(world, hosts={}) as learner:
        assert (await learner._state.ledger(ROOT)).withdrawn(wrong.id)
        host.away = False
        await learner.attach("toy", host)
        await learner.settle()
        assert await lessons(learner) == [kept.id]
        [version] = learner.stats()["served"].values()
        assert world.store.records[KEY, 2].status == "withdrawn"
        assert wrong.id not in world.store.records[KEY, version].feedback_ids


async def test_only_the_levels_that_it_taught_go_back():
    world = World()
    settings = LearningSettings(replay_every=10_000, replay_steps=4, min_feedback=2)
    async with learner_of(world, settings) as learner:
        for _ in range(3):
            await Given(world, text="abc", route=CODE).learned(learner)
        await replayed(learner)
        other = Given(world, text="lmlm", route=RouteDecision(model="toy", reason="", pattern_type="Factual"))
        await other.learned(learner)
        await replayed(learner)
        before = learner.stats()["served"]
        assert before[KEY] == 2
        await other.taken_back(learner)
        await learner.settle()
        after = learner.stats()["served"]
        assert after["toy/default/CodeGen"] == before["toy/default/CodeGen"]
        assert after[KEY] != 2


async def test_what_others_taught_since_is_fitted_again_and_named():
    world = World()
    async with learner_of(world, SETTINGS) as learner:
        given = []
        for i in range(8):
            given.append(Given(world, float(i % 2), text=None))
            await given[-1].learned(learner)
            await learner.settle()
        await given[2].taken_back(learner)
        await learner.settle()
        [version] = learner.stats()["served"].values()
        record = world.store.records[KEY, version]
        assert record.reason == "replay"
        assert set(record.feedback_ids) == {one.id for i, one in enumerate(given) if i > 2}
        assert record.parent == 2


# ---- nobody gets it again


@pytest.mark.parametrize("rolled_back", [False, True])
async def test_no_admin_and_no_header_brings_back_a_version_that_holds_what_was_taken_back(rolled_back):
    world = World()
    async with learner_of(world) as learner:
        await Given(world, text="abc").learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await replayed(learner)
        held = AdapterRef(key=KEY, version=2)
        await learner.pin(held)
        if rolled_back:
            await learner.rollback(KEY, 1)
            await learner.pin(held)
        await wrong.taken_back(learner)
        await learner.settle()
        assert world.store.records[KEY, 2].status == "withdrawn"
        assert str(held) not in world.host.adapters
        before = learner.stats()["served"]
        for brings in (learner.rollback(KEY, 2), learner.pin(held)):
            with pytest.raises(
                NotFound, match=r"\*@2 is served no more: a lesson that may be in it was taken back"
            ):
                await brings
        assert learner.stats()["served"] == before
        await learner.rollback(KEY, 0)
        assert world.store.records[KEY, 2].status == "withdrawn", "for good"
        await learner.rollback(KEY, 1)
        assert learner.stats()["served"] == {KEY: 1}, "others are there as ever"


async def test_what_came_long_before_an_old_lesson_that_is_taken_back_stays():
    world = World()
    async with learner_of(world) as learner:
        given = []
        for i in range(40):
            given.append(Given(world, float(i % 2), text=None))
            await given[-1].learned(learner)
        assert learner.stats()["served"] == {KEY: 40}
        dropped = []

        async def drop(key):
            dropped.append(key)

        world.host.drop_adapter = drop
        await given[20].taken_back(learner)
        await learner.settle()
        assert dropped == [], "nobody was put on the base model"
        [version] = learner.stats()["served"].values()
        parent = world.store.records[KEY, version].parent
        assert 1 <= parent <= 20
        assert world.store.records[KEY, parent].status == "published"
