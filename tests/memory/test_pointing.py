"""Messages that point at an earlier one keep what was said before; what is not text is no question."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory import question_of
from sona_stream.engine.memory.pointing import points
from sona_stream.episodes import Question

PASTE = "def add(a, b):\n    return a + b"
OTHER = "def parse(path):\n    return json.load(open(path))"

POINTING = [
    "Write a unit test for this function",
    "Summarize the text above.",
    "Explain the second point in more detail",
    "What is the total amount on the invoice?",
    "Translate it into French",
    "Could you please translate to French and Dutch?",
    "Rewrite this in Python with type hints and docstrings",
    "Give me another example in Python",
    "What does that function do with negative numbers?",
    "Shorten your last answer to 50 words",
    "Proofread my essay for spelling mistakes",
    "Explain point 3 to a child of five years",
    "Which of these is the cheapest for 20 people?",
    "What did the author mean in the third paragraph?",
    "Thanks, that works!\nNow write a unit test for this function",
    "What is the sum of the rows?",
    "Make the function faster",
    "Is the file empty or does it have 3 lines?",
    "Does the code handle empty lists on Windows?",
    "And in Python instead",
    "List the names mentioned in the article",
    "Please do it well:\n- Summarize the text above\n- Tell which names occur in it most often and how often",
]

STANDING = [
    "What is the capital of France?",
    "Who signs form 12?",
    "How many books can a member borrow?",
    "What is the difference between a list and a tuple in Python?",
    "How far is the moon from the earth?",
    "How do I cancel my order 12?",
    "What is your refund policy for gift cards?",
    "Is it true that Napoleon was short?",
    "Is it possible to return 3 items in Dubai?",
    "What is happening this week in Berlin?",
    "What is the tallest building in Dubai?",
    "What is the weather in Paris like?",
    "Are orders above 50 euros shipped free?",
    "What is the best way to learn Spanish quickly?",
    'What does the word "parked" mean on our board?',
    "How long is the refund window?",
    "What is the maximum file size?",
    "What is the return policy for shoes?",
    "When does the shop open on Sunday?",
    "How do I convert C++ to Rust?",
    "Does the office in Ghent have a lift?",
    "When a cat purrs, is it happy or nervous?",
    "I have a function that adds numbers. What does the function return for 2 and 3?",
    "Summarize this text:\nThe Danube is a river in Europe. It flows through ten countries to the Black Sea",
    "Write a test for this function:\n\n" + PASTE * 3,
    "Explain this: " + "a long text of many different words " * 100,
]


def said(*texts):
    return question_of([{"role": "user", "content": text} for text in texts])


@pytest.mark.parametrize("text", POINTING)
def test_what_points_keeps_what_was_said_before(text):
    assert said(PASTE, text).before == PASTE
    assert said(PASTE, text).before != said(OTHER, text).before
    assert said(text).before == "", "nothing was said before"


@pytest.mark.parametrize("text", STANDING)
def test_what_stands_by_itself_does_not(text):
    assert not points(text)
    assert said(PASTE, text) == Question(text)


def test_a_definite_noun_points_at_what_was_spoken_of():
    shop = "I have a question about a shop in Ghent."
    text = "When does the shop open on Sunday?"
    assert said(shop, text).before == shop
    assert said("I have a question about a theatre.", text) == Question(text)
    assert said(f"{shop} {text}", "What is the capital of France?").before == "", "France is named"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=120))
def test_any_text_can_be_looked_at(text):
    assert isinstance(points(text), bool)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = {"type": "text", "text": "What is the total amount on the invoice?"}


@pytest.mark.parametrize(
    "part", [IMAGE, {"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {"file_id": "f"}}]
)
def test_what_is_not_all_text_is_no_question(part):
    assert question_of([{"role": "user", "content": [TEXT, part]}]) is None
    assert question_of([{"role": "system", "content": [part]}, {"role": "user", "content": "Hi"}]) is None
    assert question_of([{"role": "user", "content": [TEXT]}]) == Question(TEXT["text"])


def test_nor_is_what_may_mean_something_that_was_no_text():
    shown = {"role": "user", "content": [{"type": "text", "text": "Our invoice"}, IMAGE]}
    for text in (TEXT["text"], "What does it show?", "Who signs?"):
        assert question_of([shown, {"role": "user", "content": text}]) is None
    alone = "What is the capital of France?"
    assert question_of([shown, {"role": "user", "content": alone}]) == Question(alone)


async def test_a_correction_does_not_act_on_another_text(opened, make):
    def asked(*texts):
        question = said(*texts)
        vectors = make.vectors(question.text)
        before = make.vector(question.before, 384, salt="c") if question.before else None
        return question, dataclasses.replace(vectors, before=before)

    def acting(memory, *texts):
        question, vectors = asked(*texts)
        recalled = memory.recall(make.viewer(), vectors.static)
        return [ref.key for ref in memory.gate(recalled, question, vectors)] if recalled else []

    for text in POINTING[:4]:
        async with opened("none") as (_, memory):
            question, vectors = asked(PASTE, text)
            key = (await memory.remember(make.record(question=question, vectors=vectors))).episode.key
            assert acting(memory, PASTE, text) == acting(memory, f"{PASTE}\n", text) == [key]
            assert acting(memory, OTHER, text) == []
