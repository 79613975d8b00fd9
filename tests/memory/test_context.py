"""What was said before a question: when it counts, what it takes away, and how it is kept."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory import question_of
from sona_stream.engine.memory.context import WEIGHTS, Before, agreement, evidence
from sona_stream.engine.memory.encoding import codes_of, head_bytes, head_from, head_of
from sona_stream.engine.memory.words import Reader
from sona_stream.episodes import Question, QuestionVectors
from sona_stream.kernels import load

READER, KERNELS = Reader(b"secret" * 6), load(compiled=False)
AUDIT, WEDDING = "We are going to have an audit.", "We are going to have a wedding."
PAPERS = "Who prepares the papers?"


def said(*texts):
    return question_of([{"role": "user", "content": text} for text in texts])


def test_only_a_question_that_may_mean_it_keeps_what_was_said_before():
    assert said(AUDIT, PAPERS) == Question(PAPERS, "", AUDIT)
    assert said(AUDIT, "And who signs?") == Question(f"{AUDIT}\nAnd who signs?", "", AUDIT)
    assert said(PAPERS).before == said(PAPERS, PAPERS).before == ""
    for specific in ("What is the capital of France?", "Who signs form 12?", "How many books may a member borrow?"):
        assert said(AUDIT, specific) == Question(specific)
    window, shop = "How long is the refund window here?", "I bought something in a shop with a refund window."
    assert said(AUDIT, window) == Question(window)
    assert said(shop, window) == Question(window, "", shop), "it was spoken of"
    assert said("Hello!", "Thanks", PAPERS).before == "", "nothing said"
    assert len(said("words of all kinds " * 5000, PAPERS).before) == 4096


def before(text, angle=0.0):
    vector = np.zeros(384, np.float32)
    vector[:2] = math.cos(angle), math.sin(angle)
    return Before(READER.read(text), codes_of(vector, KERNELS))


def test_the_same_in_other_words_agrees_and_another_thing_does_not():
    """Angles as the contextual encoder gives them."""
    stored = before("I have a question about the showroom in Aarhus.")
    assert agreement(stored, before("I need to get into the showroom in Aarhus.", math.acos(0.85))) > 0
    assert agreement(stored, before("I have a question about the showroom in Ghent.", math.acos(0.6))) < 0
    assert agreement(stored, None) == agreement(None, stored) == agreement(stored, stored) == math.inf
    assert agreement(before("the poem on page 12"), before("the poem on page 21")) == -math.inf
    assert agreement(before("return w * h", 0.0), before("return w + h", 0.1)) == -math.inf
    assert agreement(before("The poem, please."), before("the poem please", 0.1)) == math.inf


@settings(max_examples=60, deadline=None)
@given(one=st.text(max_size=60), other=st.text(max_size=60), near=st.floats(-1, 1))
def test_evidence_is_the_same_either_way_round(one, other, near):
    left, right = READER.read(one), READER.read(other)
    values = evidence(left, right, near, frozenset())
    assert len(values) == len(WEIGHTS)
    assert np.isfinite(values).all()
    assert values == pytest.approx(evidence(right, left, near, frozenset()))


def test_heads_come_back_with_and_without_it():
    rng = np.random.default_rng(0)
    vectors = QuestionVectors(
        static=np.ones(256, np.float32),
        contextual=rng.standard_normal(384).astype(np.float32),
        before=rng.standard_normal(384).astype(np.float32),
    )
    head = head_of(vectors, READER.read(PAPERS), "v", KERNELS, READER.read(AUDIT))
    back = head_from(head_bytes(head) + b"padding")
    assert back.before is not None
    np.testing.assert_array_equal(back.before.values, head.before.values)
    assert back.words_before == READER.read(AUDIT).to_json()
    alone = dataclasses.replace(head, before=None, words_before=b"")
    assert head_bytes(alone)[:2] == b"\x01\x00", "as episodes were stored before this was kept"
    assert head_from(head_bytes(alone)).before is None
    with pytest.raises(ValueError, match="cut off"):
        head_from(head_bytes(head)[:-1])


def asked(make, text, earlier="", *, contextual=True):
    vectors = make.vectors(text, contextual=contextual)
    if earlier and contextual:
        vectors = dataclasses.replace(vectors, before=make.vector(earlier, 384, salt="c"))
    return Question(text, "", earlier), vectors


def acting(memory, make, *question, **options):
    question, vectors = asked(make, *question, **options)
    recalled = memory.recall(make.viewer(), vectors.static)
    return [ref.key for ref in memory.gate(recalled, question, vectors)] if recalled else []


async def remembered(memory, make, answer, *question, **options):
    question, vectors = asked(make, *question, **options)
    return (await memory.remember(make.record(answer=answer, question=question, vectors=vectors))).episode.key


async def test_a_correction_stays_in_the_conversation_it_was_given_in(opened, make):
    async with opened() as (_, memory):
        audit = await remembered(memory, make, "Yrsa", PAPERS, AUDIT)
        assert acting(memory, make, PAPERS, AUDIT) == [audit]
        assert acting(memory, make, PAPERS, WEDDING) == []
        assert acting(memory, make, PAPERS) == [audit], "nothing was said before"
        wedding = await remembered(memory, make, "Odd", PAPERS, WEDDING)
        assert acting(memory, make, PAPERS, AUDIT) == [audit], "the other is not superseded"
        assert acting(memory, make, PAPERS, WEDDING) == [wedding]
    async with opened() as (_, memory):
        assert acting(memory, make, PAPERS, WEDDING) == [wedding], "it is stored"


async def test_a_first_message_s_correction_acts_in_later_turns(opened, make):
    async with opened() as (_, memory):
        key = await remembered(memory, make, "Yrsa", PAPERS)
        assert acting(memory, make, PAPERS, AUDIT) == acting(memory, make, PAPERS, WEDDING) == [key]


async def test_without_the_encoder_nothing_changes(opened, make):
    async with opened() as (_, memory):
        key = await remembered(memory, make, "Yrsa", PAPERS, AUDIT, contextual=False)
        assert acting(memory, make, PAPERS, WEDDING, contextual=False) == [key]


async def test_a_question_that_stands_by_itself_has_one_answer_in_all_conversations(opened, make):
    policy = "How many days may a customer of our shop return shoes?"
    async with opened() as (_, memory):
        await remembered(memory, make, "14 days", policy, said(AUDIT, policy).before)
        key = await remembered(memory, make, "30 days", policy, said(WEDDING, policy).before)
        assert acting(memory, make, policy, said(AUDIT, policy).before) == [key]
        assert [one.key for one in await memory.episodes() if one.superseded_by is None] == [key]
