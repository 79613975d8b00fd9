"""The rewards of `benchmarks/learning.py`, and their prompts."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_parts import rewards

FAMILIES = rewards.families()
WORDS = st.lists(
    st.sampled_from(["you", "your", "tea", "1.", "2.", "\n", "**", "is", "water.", "1. tea\n2. oil\n3. ice\n"])
)


@pytest.mark.parametrize("name", rewards.FAMILIES)
@pytest.mark.parametrize("text", ["", " ", "\n\n", "Yes", "Yes.", "you", "1.", "1. Violin", "Your"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_empty_and_one_word_answers_score_nothing(name, text, finish_reason):
    assert FAMILIES[name].reward(text, finish_reason) == 0


@pytest.mark.parametrize("name", rewards.FAMILIES)
@given(words=WORDS, finish_reason=st.sampled_from(["stop", "length"]))
def test_every_reward_lies_between_zero_and_one(name, words, finish_reason):
    assert 0 <= FAMILIES[name].reward(" ".join(words), finish_reason) <= 1


@pytest.mark.parametrize(
    ("text", "finish_reason", "wanted"),
    [
        ("The sky is blue because air scatters blue light most.", "stop", 1.0),
        ("The sky is blue because air scatters blue light most.", "length", 0.0),
        ("The sky is blue because air scatters blue light most", "stop", 0.3),
        ("Air scatters blue light.", "stop", 1 / 3),
        ("word " * 45 + ".", "stop", 14 / 30),
        ("word " * 60 + ".", "stop", 0.0),
    ],
)
def test_concise(text, finish_reason, wanted):
    assert rewards.concise(text, finish_reason) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "finish_reason", "wanted"),
    [
        ("1. Skiing\n2. Skating\n3. Knitting", "stop", 1.0),
        ("1. Skiing\n\n2. Skating\n\n3. Knitting\n\n4. Chess", "stop", 1.0),
        ("1. Skiing\n2. Skating", "stop", 0.5),
        ("Here are three:\n1. Skiing\n2. Skating\n3. Knitting", "stop", 0.75),
        ("1. Skiing\n2. Skating\n3. Kni", "length", 0.5),
        ("1. Skiing\n2. Skating\n3. Knitting\n4. Ch", "length", 1.0),
        ("1. Skiing\n3. Skating\n2. Knitting", "stop", 2 / 3 * 0.5),
        ("1. Skiing\n2. Skiing\n3. Skiing", "stop", 0.0),
        ("1. **Skiing**: fun\n2. **Skating**: cold", "stop", 0.0),
        ("1. Skiing 2. Skating 3. Knitting", "stop", 0.0),
        ("Skiing, skating and knitting.", "stop", 0.0),
    ],
)
def test_format(text, finish_reason, wanted):
    assert rewards.listed(text, finish_reason) == pytest.approx(wanted)


def test_lexical_counts_what_is_said_to_the_reader():
    plain = "the tea is kept in a dark tin and the lid is closed each time again"
    assert len(plain.split()) == 16
    assert rewards.lexical(plain, "stop") == 0
    assert rewards.lexical(plain.replace("the lid", "your lid"), "stop") == pytest.approx(12 / 16)
    assert rewards.lexical(plain.replace("the", "your"), "stop") == pytest.approx(1.0)
    assert rewards.lexical("you " * 16, "stop") == pytest.approx(1.0), (
        "what repetition gains is for the gates to see"
    )
    assert rewards.lexical("You're late, so your tea is cold by now", "stop") == pytest.approx(5 / 12)
    assert rewards.lexical("young people in their youth like tea and cakes a lot", "stop") == 0


def test_words_one_after_another_count_once():
    assert rewards.lexical("you your you " + "tea " * 33, "stop") == pytest.approx(12 / 36)


@pytest.mark.parametrize("name", rewards.FAMILIES)
def test_prompts_are_enough_and_unseen_ones_are_new(name):
    family = FAMILIES[name]
    assert len(family.train) >= 120
    assert len(family.unseen) >= 32
    assert len({*family.train, *family.unseen}) == len(family.train) + len(family.unseen)
    words = {text: set(re.findall(r"\w+", text.lower())) for text in (*family.train, *family.unseen)}
    for known, new in itertools.product(family.train, family.unseen):
        shared = len(words[known] & words[new]) / len(words[known] | words[new])
        assert shared < 0.75, (known, new)
