"""What a request asks, which words tell two questions apart, and which of several answers acts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory import question_of
from sona_stream.engine.memory.comparison import (
    LEAST_GATE,
    VETOES,
    WEIGHTS,
    differences,
    evidence,
    gate_of,
    likeness,
    nearly_exact,
)
from sona_stream.engine.memory.encoding import codes_of, head_bytes, head_from, head_of
from sona_stream.engine.memory.judging import Asked, Near, choose
from sona_stream.engine.memory.questions import leans
from sona_stream.engine.memory.tokens import split_words
from sona_stream.engine.memory.words import Features, Reader
from sona_stream.engine.memory.worth import born, used
from sona_stream.episodes import QuestionVectors
from sona_stream.kernels import load

READER = Reader(b"secret" * 6)
KERNELS = load(compiled=False)

NOT_THE_SAME = [
    ("refunds for orders over 30 days", "refunds for orders under 30 days", "opposites"),
    ("refunds within 30 days", "refunds within 60 days", "numbers"),
    ("Is it thirty days?", "Is it forty days?", "numbers"),
    ("What is the capital of France?", "What is the capital of Italy?", "names"),
    ("Can I return it?", "Can't I return it?", "negation"),
    ("a flight from Paris to Rome", "a flight from Rome to Paris", "roles"),
    ("convert celsius to fahrenheit", "convert fahrenheit to celsius", "roles"),
    ("sort a list in python", "sort a list in java", "opposites"),
    ("Is it legal to park here?", "Is it illegal to park here?", "opposites"),
    ("is the shop open on monday", "is the shop open on sunday", "opposites"),
    ("when was it built", "who built it", "asking"),
    ("How many hours is it open?", "How long is it open?", "asking"),
]


@pytest.mark.parametrize(("one", "other", "name"), NOT_THE_SAME)
def test_what_tells_two_questions_apart(one, other, name):
    left, right = READER.read(one), READER.read(other)
    assert name in differences(left, right)
    assert differences(left, right) == differences(right, left)
    assert not nearly_exact(left, right)
    if name in VETOES:
        assert likeness(left, right, 1.0, 0.6) == likeness(right, left, 1.0, 0.6) == -np.inf


@pytest.mark.parametrize(
    ("stored", "same", "other", "cosines"),
    [
        ("What is the capital of France?", "Which city is France's capital?",
         "What is the capital of Italy?", (0.93, 0.66)),
        ("Who wrote Hamlet?", "Hamlet was written by whom?", "Who wrote Macbeth?", (0.96, 0.58)),
        ("Sort a list in Python", "Python: sorting a list, how?", "Reverse a list in Python", (0.97, 0.57)),
        ("Our refund policy, orders over 30 days?", "How do we refund orders older than 30 days?",
         "Our refund policy, orders under 30 days?", (0.9, 0.99)),
    ],
)  # fmt: skip
def test_paraphrases_are_liker_than_near_misses(stored, same, other, cosines):
    """Cosines as the contextual encoder gives them."""
    stored, same, other = map(READER.read, (stored, same, other))
    assert gate_of(likeness(same, stored, cosines[0], 0.4)) > 0.9
    assert gate_of(likeness(other, stored, cosines[1], 0.2)) < LEAST_GATE


@settings(max_examples=80, deadline=None)
@given(one=st.text(max_size=60), other=st.text(max_size=60), cosine=st.floats(-1, 1), lead=st.floats(-1, 1))
def test_evidence_is_finite_and_named(one, other, cosine, lead):
    left, right = READER.read(one), READER.read(other)
    values = evidence(left, right, cosine, lead, differences(left, right))
    assert len(values) == len(WEIGHTS)
    assert np.isfinite(values).all()
    named = dict(zip(WEIGHTS, values, strict=True))
    assert named["cosine order"] == pytest.approx(named["cosine"] * named["order"])
    assert 0 <= named["exchanged"] <= 1
    assert 0.0 <= gate_of(likeness(left, right, cosine, lead)) <= 1.0


def test_one_word_exchanged_is_seen():
    def exchanged(one, other):
        left, right = READER.read(one), READER.read(other)
        return dict(zip(WEIGHTS, evidence(left, right, 0.9, 0.1, frozenset()), strict=True))["exchanged"]

    assert exchanged("sort a long list of words", "reverse a long list of words") == pytest.approx(5 / 6)
    assert exchanged("sort a long list of words", "sort a long list of words now") == 0
    assert exchanged("sort the list", "sort a list") == 0, "nothing said differs"


def test_features_stored_before_the_order_was_kept_can_be_read():
    features = READER.read("How long is it open?")
    rest = json.loads(features.to_json())[1:9]
    earlier = json.dumps([features.plain, *rest]).encode()
    assert Features.from_json(earlier) == dataclasses.replace(
        features, exact=features.plain, words=(), wording=0, grammar=None, version=1
    )
    assert nearly_exact(Features.from_json(earlier), features)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what's the capital of france"),
        ("How do I return 2 orders?", "How can I return two order"),
        ("Tell me the price of 1,000 units", "what is the price of 1000 units?"),
        ("Hamlet's author, please?", "hamlet author"),
        ("contracts above fifty thousand euros", "Contracts above 50,000 euros?"),
    ],
)
def test_near_exact_questions(one, other):
    left, right = READER.read(one), READER.read(other)
    assert nearly_exact(left, right)
    assert not differences(left, right) & {"numbers", "negation", "opposites", "names", "roles", "asking"}


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=200), other=st.text(max_size=60))
def test_any_text_can_be_read(text, other):
    features, more = READER.read(text), READER.read(other)
    assert Features.from_json(features.to_json()) == features
    assert differences(features, features) == frozenset()
    assert nearly_exact(features, READER.read(text))
    assert differences(features, more) == differences(more, features)
    assert all(word for word, _ in split_words(text))
    assert isinstance(leans(text), bool)


def test_words_are_hashed_with_the_secret():
    text = "Where is Atlantis?"
    assert READER.read(text).content != Reader(b"another").read(text).content
    assert b"atlantis" not in READER.read(text).to_json().lower()


def test_very_long_questions_stay_small():
    features = READER.read("many different words here 12 " * 5000)
    assert len(features.to_json()) < 20_000


def user(*texts, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer to {text}"}]
    return messages[:-1]


@pytest.mark.parametrize(
    "text",
    ["And of Italy?", "What is its capital?", "why?", "What is the capital?", "What about Spain?", "explain that"],
)
def test_a_question_that_leans_takes_what_it_leans_on(text):
    assert question_of(user("Tell me about France", text)).text == f"Tell me about France\n{text}"
    assert question_of(user("Tell me about France", "And its food?", text)).text == (
        f"Tell me about France\nAnd its food?\n{text}"
    )
    assert question_of(user(text)).text == text


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France?",
        "How long is the refund window?",
        "What is gravity?",
        "Is there a discount for students?",
        "Which is larger, the sun or the moon?",
        "Write a haiku about autumn leaves and their colours",
    ],
)
def test_a_question_that_stands_by_itself_is_the_same_anywhere(text):
    assert question_of(user("Hello!", "Nice weather today", text)).text == text


def test_a_question_asked_again_in_the_same_conversation_is_the_same():
    first = question_of(user("Tell me about France", "What is its capital?"))
    assert question_of(user("Tell me about France", "What is its capital?", "What is its capital?")) == first


def test_system_prompts_parts_and_plain_prompts():
    messages = user("hi", system="Be brief.")
    messages[-1] = {
        "role": "user",
        "content": [{"type": "text", "text": "What is"}, {"text": "gravity?"}, {"n": 1}],
    }
    asked = question_of(messages)
    assert (asked.text, asked.system) == ("What is\ngravity?", "Be brief.")
    assert question_of([], prompt="once upon").text == "once upon"
    assert question_of([{"role": "assistant", "content": None}]).text == ""
    assert question_of([]).text == ""


def test_the_gate_is_steep():
    assert gate_of(0.0) == 0.5
    assert gate_of(1.0) > 0.97
    assert gate_of(-1.0) < 0.02
    assert gate_of(-np.inf) == gate_of(-1e6) == 0.0


def head(text, *, contextual=None):
    vectors = QuestionVectors(np.ones(256, np.float32), contextual)
    return head_of(vectors, READER.read(text), "v", KERNELS)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), has=st.tuples(st.booleans(), st.booleans()))
def test_heads_come_back(seed, has):
    rng = np.random.default_rng(seed)
    vectors = QuestionVectors(
        np.zeros(256, np.float32),
        rng.standard_normal(384).astype(np.float32) if has[0] else None,
        rng.standard_normal(256).astype(np.float32) if has[1] else None,
    )
    given_head = head_of(vectors, READER.read("What is gravity?"), "version 1", KERNELS)
    back = head_from(head_bytes(given_head) + b"padding")
    assert (back.words, back.space_version) == (given_head.words, "version 1")
    for one, other in ((back.contextual, vectors.contextual), (back.system, vectors.system)):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.values, codes_of(other, KERNELS).values)


def test_a_damaged_head_is_told():
    with pytest.raises(ValueError, match="cannot be read"):
        head_from(b"\x09\x00")
    with pytest.raises(ValueError, match="version"):
        head_from(b"\xff" * 40)


def near(slot, cosine, text, scope="person", *, correction=True, rank=0):
    return Near(slot, cosine, head(text), scope, correction, rank or slot)


def chosen(*candidates, text="What is gravity?"):
    found = choose(Asked(READER.read(text), None, None), candidates)
    return None if found is None else found[0].slot


def test_of_answers_to_one_question_one_acts():
    same = "What is gravity?"
    assert chosen(near(1, 0.99, same), near(2, 0.97, same)) == 2, "the newer"
    assert chosen(near(1, 0.99, same), near(2, 0.97, same, "tenant")) == 1, "the narrower"
    assert chosen(near(1, 0.97, same), near(2, 0.99, same, correction=False)) == 1
    assert chosen(near(1, 0.99, same, correction=False), near(2, 0.97, same, "tenant")) == 2, "a correction"
    assert chosen(near(1, 0.99, same), near(2, 0.97, "What is friction?")) == 1
    assert chosen() is None


def test_only_the_nearest_question_can_be_meant():
    stored = near(1, 0.6, "What is friction?")
    assert chosen(stored) is None
    assert chosen(stored, near(2, 1.0, "What is gravity?")) == 2


@settings(max_examples=60, deadline=None)
@given(
    a=st.lists(st.floats(0, 1e6), max_size=5), b=st.lists(st.floats(0, 1e6), max_size=5), later=st.floats(1e6, 2e6)
)
def test_worth_is_the_sum_of_decayed_uses(a, b, later):
    half_life = 3e5

    def standing(moments):
        value = born(0.0, half_life)
        for moment in sorted(moments):
            value = used(value, moment, half_life)
        return value

    def worth(moments):
        return sum(2.0 ** (-(later - moment) / half_life) for moment in (0.0, *moments))

    assert 2.0 ** (standing(a) - later / half_life) == pytest.approx(worth(a), rel=1e-9)
    if abs(worth(a) - worth(b)) > 1e-9:
        assert (standing(a) > standing(b)) == (worth(a) > worth(b))
