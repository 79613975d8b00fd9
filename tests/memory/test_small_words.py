"""Questions that differ in small words, endings and order alone: which of them are one."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona_stream.engine.memory.comparison import VETOES, changed, differences, likeness, nearly_exact, regressed
from sona_stream.engine.memory.grammar import Grammar
from sona_stream.engine.memory.small_words import MOST_CHANGED, WEIGHTS
from sona_stream.engine.memory.words import Features, Reader

READER = Reader(b"secret" * 6)
COSINE, LEAD = 0.975, 0.4
"""About what the encoder says of all of these"""
HARMLESS = [
    ("What\u2019s our refund policy for gift cards?", "What is the refund policy for gift cards?"),
    ("How do I order a new card?", "How can I order new cards?"),
    ("What is our refund policy for gift cards?", "What is the refund policy for gift cards?"),
    ("Who signs contracts above 50,000 euros?", "Who must sign contracts above 50,000 euros?"),
    ("How do I return an item?", "How can you return an item?"),
    ("When does the shop open on Sunday?", "When will the shop open on Sundays?"),
    ("Who waters the office plants?", "Who is watering our office plants?"),
    ("At the airport, where do we meet the guide?", "Where do we meet the guide at the airport?"),
    ("How do we number drawings?", "How are our drawings numbered?"),
    ("Which documents do I need for the loan?", "What documents do I need for a loan?"),
    ("Who has to sign the lease?", "Who should sign a lease?"),
]
HARMFUL = [
    ("Who is the CEO of Lidl?", "Who was the CEO of Lidl?"),
    ("Do we owe the supplier money?", "Did we owe the supplier money?"),
    ("Do I owe the bank money?", "Do you owe the bank money?"),
    ("Who sees my salary data?", "Who sees her salary data?"),
    ("Can visitors park here?", "Must visitors park here?"),
    ("Do you serve tea and coffee?", "Do you serve tea or coffee?"),
    ("Where do trucks come from in winter?", "Where do trucks come to in winter?"),
    ("How do volcanoes form islands?", "How do islands form volcanoes?"),
    ("Which bin is for the glass?", "Which glass is for the bin?"),
    ("Who trained the new nurses?", "Who did the new nurses train?"),
    ("Who trains the new nurses?", "Who trained the new nurses?"),
    ("When is the pool cleaned?", "Is the pool cleaned?"),
    ("What does the manager want from the driver?", "What does the driver want from the manager?"),
]
ELSEWHERE = [
    ("Who can only read the report?", "Who can read the report?"),
    ("When does the shop open again?", "When does the shop open?"),
    ("Do a few people know the code?", "Do few people know the code?"),
    ("Is he in the charge of a nurse?", "Is he in charge of a nurse?"),
    ("What is a refund policy in retail?", "What is our refund policy in retail?"),
    ("Which rooms have exactly 5 beds?", "Which rooms have 5 beds?"),
    ("How much vitamin a do nurses need?", "How much vitamin do nurses need?"),
    ("What does foo(a, b) return?", "What does foo(b, a) return?"),
    ('What does print("1") show?', "What does print(1) show?"),
    ("How do I open Windows quickly?", "How do I open a window quickly?"),
    ("Are glasses recyclable?", "Is glass transparent?"),
    ("What is the matter?", "What is matter?"),
    ("Who owns the shop?", "Who doesn't own the shop?"),
    ("How many rents: 7 or 8?", "How many rents: 8 or 7?"),
    ("\u6211\u53ef\u4ee5\u9000\u6b3e\u5417", "\u53ef\u4ee5\u6211\u9000\u6b3e\u5417"),
]
"""Other words, too little, or what small words do not tell"""
WORDS = [
    *(
        "who",
        "what",
        "when",
        "how",
        "do",
        "does",
        "did",
        "is",
        "was",
        "can",
        "must",
        "i",
        "you",
        "she",
        "my",
        "your",
    ),
    *("the", "a", "of", "in", "from", "to", "for", "and", "or", "nurse", "park", "sign", "signed"),
]


def odds(one, other):
    a, b = READER.read(one), READER.read(other)
    assert not nearly_exact(a, b)
    return [likeness(x, y, COSINE, LEAD) for x, y in ((a, b), (b, a))]


@pytest.mark.parametrize(("one", "other"), HARMLESS)
def test_what_says_the_same_passes(one, other):
    assert min(odds(one, other)) > 0


@pytest.mark.parametrize(("one", "other"), HARMFUL)
def test_what_asks_for_something_else_does_not(one, other):
    assert max(odds(one, other)) < 0


@pytest.mark.parametrize(("one", "other"), ELSEWHERE)
def test_other_differences_are_left_to_the_other_regression(one, other):
    a, b = READER.read(one), READER.read(other)
    assert changed(a, b, COSINE, 0.0) is None
    found = differences(a, b)
    expected = -math.inf if found & VETOES else regressed(a, b, COSINE, LEAD, found)
    assert likeness(a, b, COSINE, LEAD) == expected


def test_many_small_words_are_left_to_the_other_regression():
    a = READER.read("Which shoe size do I have for my own shoes?")
    b = READER.read("What is the size of the shoe that is there and with which you own shoes?")
    assert len({*a.words} ^ {*b.words}) > MOST_CHANGED
    assert changed(a, b, COSINE, 0.0) is None


def test_what_was_stored_before_the_grammar_was_kept_is_judged_as_it_was():
    a, b = (READER.read(text) for text in HARMLESS[2])
    earlier = Features.from_json(json.dumps(json.loads(b.to_json())[:-1]).encode())
    assert (earlier.version, earlier.grammar) == (3, None)
    assert earlier == dataclasses.replace(b, version=3, grammar=None)
    assert Features.from_json(earlier.to_json()) == earlier
    assert changed(a, earlier, COSINE, 0.0) is None
    assert nearly_exact(READER.read(HARMLESS[2][1]), earlier)


def test_a_long_question_has_no_grammar():
    assert READER.read("Who signs it? " * 40).grammar is None


def test_a_grammar_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="grammar has 1 values"):
        Grammar.from_json([[]])


@given(st.lists(st.sampled_from(WORDS), max_size=9), st.lists(st.sampled_from(WORDS), max_size=9))
def test_neither_question_comes_first(one, other):
    one, other = (" ".join([*words, "nurse", "park"]) for words in (one, other))
    a, b = READER.read(one), READER.read(other)
    found = changed(a, b, COSINE, 1.0)
    assert found == changed(b, a, COSINE, 1.0)
    assert found is None or len(found) == len(WEIGHTS)
    assert Features.from_json(a.to_json()) == a
    same = changed(a, a, COSINE, 1.0)
    assert same is None or not any(value for value in same[:-2])
