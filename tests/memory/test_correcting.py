"""A correction acts on the very question that was corrected, whatever was remembered of its neighbours."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from sona_stream.episodes import Question

WORDINGS = (
    "What is the return window for shoes in the shop?",
    "Please tell me what the return window for shoes in the shop is.",
    "The return window for shoes in the shop?",
)


def between(make, text, angle):
    """Asked in these words, as far from the others as the angle says."""
    vectors = make.vectors(WORDINGS[0])
    contextual = np.zeros(384, np.float32)
    contextual[:2] = math.cos(angle), math.sin(angle)
    return Question(text), dataclasses.replace(vectors, contextual=contextual)


@pytest.fixture
def wordings(make):
    """The third lies between the first two, which are too far apart to be one question: 0.86, and 0.96 to it."""
    return [between(make, text, angle) for text, angle in zip(WORDINGS, (0.0, 0.53, 0.28), strict=True)]


def acting(memory, make, wording):
    recalled = memory.recall(make.viewer(), wording[1].static)
    return [ref.key for ref in memory.gate(recalled, *wording)]


async def say(memory, make, wording, answer, **changes):
    return await memory.remember(make.record(answer=answer, question=wording[0], vectors=wording[1], **changes))


@pytest.mark.parametrize("kind", ["correction", "accepted"])
async def test_an_answer_is_known_only_where_it_acts(opened, make, wordings, kind):
    async with opened() as (_, memory):
        first, second, third = wordings
        right = (await say(memory, make, first, "14 days", kind=kind)).episode.key
        wrong = await say(memory, make, second, "30 days", kind=kind)
        assert wrong.superseded == (), "two questions, as far as anybody can tell"
        assert acting(memory, make, third) == [wrong.episode.key], "the nearer one"
        given = await say(memory, make, third, "14 days", kind=kind)
        assert not given.known
        assert set(given.superseded) == {right, wrong.episode.key}
        for wording in wordings:
            assert acting(memory, make, wording) == [given.episode.key]
        again = await say(memory, make, third, "14 days", kind=kind)
        assert (again.known, again.episode.key) == (True, given.episode.key)


async def test_asking_for_what_is_known_counts_no_use(opened, make, wordings):
    async with opened() as (_, memory):
        key = (await say(memory, make, wordings[0], "14 days")).episode.key
        assert (await say(memory, make, wordings[0], "14 days")).known
        await memory.settle()
        assert (await memory.find(key)).uses == 0
        assert "searches" not in memory.counters()


async def test_what_is_right_for_its_neighbour_stays_when_the_right_one_acts(opened, make, wordings):
    async with opened() as (_, memory):
        first, second, third = wordings
        wrong = (await say(memory, make, second, "30 days")).episode.key
        third = third[0], dataclasses.replace(third[1], contextual=between(make, "", 0.2)[1].contextual)
        right = (await say(memory, make, first, "14 days")).episode.key
        given = await say(memory, make, third, "14 days")
        assert (given.known, given.episode.key) == (True, right)
        assert acting(memory, make, second) == [wrong]
        anew = await say(memory, make, third, "14 days", feedback_id="f2")
        assert (anew.known, anew.superseded) == (False, (right,))
        for wording in (first, third):
            assert acting(memory, make, wording) == [anew.episode.key]
        assert acting(memory, make, second) == [wrong]
