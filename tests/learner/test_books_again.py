"""A book that comes back from the store is the book that was: after a restart, an eviction, a rollback."""

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner_life import learner_of
from toy import MemoryStore, Rates, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.books import clear, read_book
from sona_stream.engine.learner.keys import AdapterKey
from sona_stream.engine.learner.ledger import Ledger
from sona_stream.engine.learner.lessons import Lesson, LessonBook
from sona_stream.events import RouteDecision

ROOT = AdapterKey("toy", "default")
SMALL = LearningSettings(replay_every=10_000, replay_capacity=16)
STILL = Rates(micro_lora_lr=0.0)


def pattern(name):
    return RouteDecision(model="toy", reason="t", pattern_type="Factual", pattern=name)


async def taught(world, learner, n, patterns="ab"):
    for i in range(n):
        request_id, _ = world.ask(route=pattern(patterns[i % len(patterns)]))
        await learner.learn(world.judge(request_id, float(i // 2 % 2)), wait=True)


def told(book):
    return [(one.feedback_id, one.groups, one.quality) for one in book]


async def test_it_is_the_same_after_a_restart_and_after_it_left_memory():
    world = World()
    async with learner_of(world, SMALL, rates=STILL) as learner:
        await taught(world, learner, 40)
        before = told(await learner._state.book(ROOT))
        learner._state.books.forget("toy")
        assert told(await learner._state.book(ROOT)) == before
    async with learner_of(world, SMALL, rates=STILL) as learner:
        assert told(await learner._state.book(ROOT)) == before
    assert [id for id, *_ in before] == [f"f-{i}" for i in range(24, 40)]


@pytest.mark.parametrize("group", ["*", "Factual", "pattern:a"])
async def test_what_was_rolled_back_does_not_return(group):
    """Nor does what had left the book already while the store kept it."""
    world = World()
    async with learner_of(world, SMALL, rates=STILL) as learner:
        await taught(world, learner, 40)
        await learner.rollback(str(ROOT.at(group)), 0)
        assert (await learner._state.book(ROOT)).of(ROOT.at(group)) == []
    async with learner_of(world, SMALL, rates=STILL) as learner:
        state = learner._state
        assert (await state.book(ROOT)).of(ROOT.at(group)) == []
        assert bool(await state.book(ROOT)) is (group == "pattern:a"), "another pattern's lessons stay"
        await taught(world, learner, 4)
    async with learner_of(world, SMALL, rates=STILL) as learner:
        again = [one.feedback_id for one in (await learner._state.book(ROOT)).of(ROOT.at(group))]
        assert again == (["f-40", "f-42"] if group == "pattern:a" else ["f-40", "f-41", "f-42", "f-43"])


def a_capture():
    world = World()
    world.ask()
    return next(iter(world.host.captures.values()))


CAPTURE = a_capture()
LEARN, TAKE_BACK, CLEAR = "abc", "-", "ABC"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(LEARN * 4 + TAKE_BACK + CLEAR), max_size=60), st.integers(1, 12))
async def test_whatever_came_and_went_what_was_in_memory_is_read_again(steps, capacity):
    """And before it what had to make room for lessons that were then taken back: the newest `capacity` of all."""
    store, ledger, book, every = MemoryStore(), Ledger(ROOT, 8.0), LessonBook(capacity), {}
    for i, step in enumerate(steps):
        feedback_id, groups = f"f{i}", ("*", step.lower())
        if step in LEARN:
            capture = dataclasses.replace(CAPTURE, request_id=f"r{i}")
            lesson = Lesson(capture, 0.5, groups, feedback_id)
            ledger.count(feedback_id, groups, 0.5)
            await store.put_capture(str(ROOT.at(step)), capture, 0.5, feedback_id=feedback_id)
            book.add(lesson)
            every[feedback_id] = lesson
            continue
        if step in CLEAR:
            gone = [id for id, one in every.items() if step.lower() in one.groups]
            await clear(store, ledger, step.lower())
        else:
            gone = [one.feedback_id for one in book][:3]
            ledger.withdraw(gone)
        book.forget(gone)
        for id in gone:
            every.pop(id, None)
    await ledger.save(store)
    found = await read_book(store, await Ledger.load(store, ROOT, 8.0), CAPTURE.fingerprint, capacity)
    assert [one.feedback_id for one in found] == list(every)[-capacity:]
    held = [one.feedback_id for one in book]
    assert [one.feedback_id for one in found][len(found) - len(held) :] == held


async def test_an_answer_that_the_store_forgets_is_forgotten_here_too():
    """In memory as its time is over; and what is read back is never older, though the store tidies later."""
    world = World()
    async with Learner({"toy": world.host}, world.store, STILL, SMALL, keep_days=30.0) as learner:
        await taught(world, learner, 8)
        state, days = learner._state, 86400.0
        book = await state.book(ROOT)
        for i, lesson in enumerate(book):
            head = world.store.heads[str(ROOT.at(lesson.groups[-1])), lesson.feedback_id]
            at = time.time() - (40 - 2.1 * i) * days
            book.add(dataclasses.replace(lesson, at=at))
            world.store.heads[head.key, head.feedback_id] = dataclasses.replace(head, stored_at=at)
        left = ["f-5", "f-6", "f-7"]
        assert [one.feedback_id for one in await state.book(ROOT)] == left
        state.books.forget("toy")
        assert [(one.feedback_id, one.at > time.time() - 30 * days) for one in await state.book(ROOT)] == [
            (id, True) for id in left
        ]
