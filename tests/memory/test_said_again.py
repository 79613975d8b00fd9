"""Who says the same again has it for as long as anything new, and can take that back alone."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from sona_stream.episodes import EpisodeText, Question

FRANCE = "What is the capital of France?"
DAY = 86400.0
real = time.time


@pytest.fixture
def day(monkeypatch):
    """``day(n)``: it is that day from now on."""
    return lambda days: monkeypatch.setattr(time, "time", lambda: real() + days * DAY)


def again(make, **changes):
    return make.record(feedback_id="f2", request_id="r2", **changes)


async def expire(store, memory):
    await store.expire(now=time.time())
    await memory.settle()


@pytest.mark.parametrize("storage", ["none", "features", "text"])
@pytest.mark.parametrize("kind", ["correction", "accepted"])
async def test_it_lasts_from_the_last_time_that_it_was_said(opened, make, day, storage, kind):
    async with opened(storage) as (store, memory):
        first = (await memory.remember(make.record(kind=kind))).episode
        day(29)
        told = await memory.remember(again(make, kind=kind))
        assert (told.known, told.superseded) == (False, (first.key,))
        assert make.acting(memory, FRANCE) == [told.episode.key]
        assert (told.episode.feedback_id, told.episode.request_id) == ("f2", "r2")
        day(30.1)
        await expire(store, memory)
        assert [one.key for one in await memory.episodes()] == [told.episode.key]
        assert make.acting(memory, FRANCE) == [told.episode.key]
        day(59.1)
        await expire(store, memory)
        assert await memory.episodes() == []


@pytest.mark.parametrize("storage", ["none", "features", "text"])
async def test_undo_of_the_second_leaves_the_first_as_it_was(opened, make, day, storage):
    async with opened(storage) as (store, memory):
        await memory.remember(make.record())
        (first,) = await memory.episodes()
        day(29)
        told = await memory.remember(again(make))
        assert await memory.episodes(feedback="f2") == [told.episode]
        assert (await memory.undo(told.episode.key)).returned == (first.key,)
        assert await memory.episodes() == [first]
        assert make.acting(memory, FRANCE) == [first.key]
        day(30.1)
        await expire(store, memory)
        assert await memory.episodes() == [], "it is as old as it is"


@pytest.mark.parametrize("storage", ["none", "features", "text"])
async def test_every_telling_is_taken_back_one_by_one(opened, make, storage):
    async with opened(storage) as (_, memory):
        keys = [(await memory.remember(make.record(feedback_id=f"f{number}"))).episode.key for number in range(4)]
        for older, newer in zip(keys[-2::-1], keys[:0:-1], strict=True):
            assert make.acting(memory, FRANCE) == [newer]
            assert (await memory.undo(newer)).returned == (older,)
        assert (await memory.undo(keys[0])).returned == ()
        assert make.acting(memory, FRANCE) == []


async def test_who_forgets_it_forgets_all_the_times(opened, make):
    async with opened() as (_, memory):
        await memory.remember(make.record())
        told = await memory.remember(again(make))
        await memory.forget(keys=[told.episode.key])
        assert await memory.episodes() == []


async def test_in_other_words_it_is_known_by_the_first(opened, make):
    async with opened("text") as (_, memory):
        first = (await memory.remember(make.record())).episode
        newer = dataclasses.replace(
            again(make),
            question=Question("The capital of France?"),
            text=EpisodeText(answer="Lyon", body=b"{}"),
        )
        told = await memory.remember(newer)
        assert told.superseded == (first.key,)
        assert make.acting(memory, FRANCE) == [told.episode.key]
        np.testing.assert_array_equal(memory.states(told.episode.key).token_ids, newer.token_ids)
        assert told.episode.text.body == b"{}"


async def test_it_survives_a_restart(opened, make):
    async with opened("text") as (_, memory):
        first = (await memory.remember(make.record())).episode
        told = (await memory.remember(again(make))).episode
    async with opened("text") as (_, memory):
        assert make.acting(memory, FRANCE) == [told.key]
        assert (await memory.undo(told.key)).returned == (first.key,)
        assert make.acting(memory, FRANCE) == [first.key]


async def test_the_times_before_make_room_first(opened, make):
    async with opened(tenant_episodes=3) as (_, memory):
        other = (await memory.remember(make.record("Who wrote Faust?", "Goethe"))).episode
        for number in range(9):
            told = await memory.remember(make.record(feedback_id=f"f{number}"))
        assert make.acting(memory, "Who wrote Faust?") == [other.key]
        assert make.acting(memory, FRANCE) == [told.episode.key]
        assert len(await memory.episodes()) == 3
