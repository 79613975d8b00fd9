"""Answers that were found good: they weigh less than corrections, give way to them, and leave as easily."""

from __future__ import annotations

import pytest

from sona_stream.engine.memory.judging import ACCEPTED_SHARE
from sona_stream.episodes import Question
from sona_stream.events import EpisodeRef

FRANCE = "What is the capital of France?"


def acting(make, memory, text=FRANCE, who=None) -> tuple[EpisodeRef, ...]:
    asked = make.vectors(text)
    recalled = memory.recall(who or make.viewer(), asked.static)
    return memory.gate(recalled, Question(text), asked) if recalled else ()


def accepted(make, answer="Paris it is", **changes):
    return make.record(answer=answer, kind="accepted", **changes)


async def test_it_weighs_less_than_a_correction(opened, make):
    async with opened() as (_, memory):
        key = (await memory.remember(accepted(make))).episode.key
        (ref,) = acting(make, memory)
        assert (ref.key, ref.share) == (key, ACCEPTED_SHARE)
        assert 0.9 * ACCEPTED_SHARE < 0.5, "the model keeps the greater part of every token"
        assert acting(make, memory, who=make.viewer("bob")) == ()
        corrected = await memory.remember(make.record())
        assert corrected.superseded == (key,)
        (ref,) = acting(make, memory)
        assert (ref.key, ref.share) == (corrected.episode.key, 1.0)


async def test_a_correction_to_the_words_that_were_accepted_weighs_like_one(opened, make):
    async with opened() as (_, memory):
        good = (await memory.remember(accepted(make, answer="Paris"))).episode
        corrected = await memory.remember(make.record(answer="Paris"))
        assert (corrected.known, corrected.superseded) == (False, (good.key,))
        (ref,) = acting(make, memory)
        assert (ref.key, ref.share) == (corrected.episode.key, 1.0)
        assert (await memory.remember(make.record(answer="Paris"))).known
        assert (await memory.remember(accepted(make, answer="Paris"))).known


async def test_a_correction_is_not_overruled(opened, make):
    async with opened() as (_, memory):
        correction = (await memory.remember(make.record())).episode
        again = await memory.remember(accepted(make))
        assert again.known
        assert again.episode.key == correction.key
        assert [ref.key for ref in acting(make, memory)] == [correction.key]


async def test_not_even_one_of_a_wider_scope(opened, make):
    async with opened() as (_, memory):
        correction = (await memory.remember(make.record(user="bob", key_id="k2"))).episode
        await memory.promote(correction.key, "tenant", by="admin")
        await memory.remember(accepted(make))
        (ref,) = acting(make, memory)
        assert (ref.key, ref.share) == (correction.key, 1.0)
        assert (await memory.remember(accepted(make))).known, "again and again it is found good, and stored once"
        assert len(await memory.episodes()) == 2


async def test_undone_a_correction_gives_way_to_what_was_accepted(opened, make):
    async with opened() as (_, memory):
        good = (await memory.remember(accepted(make))).episode
        correction = (await memory.remember(make.record())).episode
        assert (await memory.undo(correction.key)).returned == (good.key,)
        assert [ref.key for ref in acting(make, memory)] == [good.key]
        assert (await memory.undo(good.key)).episode.key == good.key
        assert acting(make, memory) == ()


@pytest.mark.parametrize("storage", ["none", "features"])
async def test_room_is_made_of_accepted_answers_first(opened, make, storage):
    async with opened(storage, tenant_episodes=6) as (_, memory):
        corrected = [f"What is the capital of Zone{number}?" for number in range(4)]
        good = [f"Who rules over Land{number}?" for number in range(8)]
        for text in corrected:
            await memory.remember(make.record(text, answer=text))
        for text in good:
            await memory.remember(make.record(text, answer=text, kind="accepted"))
            for _ in range(3):
                acting(make, memory, text)
        alive = [text for text in (*corrected, *good) if acting(make, memory, text)]
        assert alive == [*corrected, *good[-2:]], "used or not, corrections stay"
        for number in range(9):
            await memory.remember(make.record(f"Where is Town{number}?", answer=str(number)))
        assert len(await memory.episodes()) == 6
        assert all(one.kind == "correction" for one in await memory.episodes())
        assert memory.counters()["evicted"] == 6 + 9


async def test_the_same_answer_is_found_to_be_taken_back(opened, make):
    async with opened(max_tokens=4) as (_, memory):
        given = accepted(make, tokens=6)
        key = (await memory.remember(given)).episode.key
        sketch = memory.sketch(given.question, given.vectors)
        assert memory.accepted(make.viewer(), sketch, given.token_ids) == [key]
        assert memory.accepted(make.viewer("bob"), sketch, given.token_ids) == []
        assert memory.accepted(make.viewer(), sketch, given.token_ids + 1) == [], "another answer was bad"
        elsewhere = make.record("How do I bake bread?")
        other = memory.sketch(elsewhere.question, elsewhere.vectors)
        assert memory.accepted(make.viewer(), other, given.token_ids) == []
        correction = make.record(answer="Lyon")
        await memory.remember(correction)
        assert memory.accepted(make.viewer(), sketch, correction.token_ids) == [], "corrections are not taken back"
