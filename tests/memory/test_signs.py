"""Signs that mean something tell questions apart, those that only write them down do not; long questions, too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory.comparison import differences, likeness, nearly_exact, same_text
from sona_stream.engine.memory.tokens import split, split_words
from sona_stream.engine.memory.words import WORDS_IN_ORDER, Features, Reader

READER = Reader(b"secret" * 6)

ANOTHER = [
    ("Who invented C?", "Who invented C++?"),
    ("Who invented C#?", "Who invented C++?"),
    ("What is .NET?", "What is net?"),
    ("What is a .gitignore file?", "What is a gitignore file?"),
    ("What is 2 + 3 * 4?", "What is (2 + 3) * 4?"),
    ("((1 + 2) * 3) * 4", "(1 + 2) * 3 * 4"),
    ("(price + tax) * 2", "price + tax * 2"),
    ("sin(x + 1)", "sin(x) + 1"),
    ("2 - (3 - 1)", "2 - 3 - 1"),
    ("What is 7 & 3?", "What is 7 | 3?"),
    ("What is 5!", "What is 5?"),
    ("What is 5!?", "What is 5?"),
    ("What is n! / k!", "What is n / k"),
    ("What is 3 - 7?", "What is 7 - 3?"),
    ("Is 3 greater than 5?", "Is 5 greater than 3?"),
    ("the square root of -4", "the square root of 4"),
    ("What is .5 + 1?", "What is 5 + 1?"),
    ("What is 2\u00b2?", "What is 22?"),
    ("What is 2\u00bd?", "What is 21/2?"),
    ("7 \u2264 8", "7 \u2265 8"),
    ("7 \u00d7 8", "7 \u00f7 8"),
    ("How do I add 10%?", "How do I add 10?"),
    ("What is $5 in yen?", "What is \u20ac5 in yen?"),
    ("Is blood type A+ rare?", "Is blood type A- rare?"),
    ("What does x == y do?", "What does x = y do?"),
    ("What does && do?", "What does || do?"),
    ("What does !x do?", "What does x do?"),
    ("What does x-- do?", "What does x do?"),
    ("What does std::move do?", "What does std move do?"),
    ("What does __init__ do?", "What does init do?"),
    ("What does *args mean?", "What does **args mean?"),
    ("How do I escape ' in a text?", 'How do I escape " in a text?'),
    ('What does ";" mean?', 'What does ":" mean?'),
    ('What does "?." do in code?', 'What does "??" do in code?'),
    ("What is '(' for?", "What is '[' for?"),
    ("Is it in [1, 2]?", "Is it in (1, 2)?"),
    ("What is \u2211 for?", "What is \u220f for?"),
    ("What does \U0001f44d mean?", "What does \U0001f44e mean?"),
    (
        "\u0926\u093f\u0928 \u0915\u094d\u092f\u093e \u0939\u0948",
        "\u0926\u0940\u0928 \u0915\u094d\u092f\u093e \u0939\u0948",
    ),
]

THE_SAME = [
    ("Who invented C++?", "who invented c++"),
    ("What is gravity?", 'what is "gravity"...'),
    ("What is gravity?", "What is \u201cgravity\u201d!!!"),
    ("What is gravity?", "What  is\tgravity \n"),
    ("What is gravity?", "What is **gravity**?"),
    ("What is gravity?", "- What is `gravity`?"),
    ("What is gravity?", "What is gravity? \U0001f60a"),
    ("Hello, what is gravity?", "Hello \u2014 what is gravity?"),
    ("Hello, what is gravity?", "Hello - what is gravity?"),
    ("What is gravity, please?", "What is gravity (please)?"),
    ("(5 points) What is gravity?", "5 points: What is gravity?"),
    ("Bonjour ! Qui est Zo\u00e9 ?", "bonjour, qui est zoe\u0301"),
    ("How do R&D teams work?", "How do R & D teams work?"),
    ("What is 2+3?", "What is 2 + 3 = ?"),
    ("What is 7\u00d78?", "What is 7 * 8?"),
    ("What is \uff21\uff22\uff23\uff1f", "what is abc?"),
]


@pytest.mark.parametrize(("one", "other"), ANOTHER)
def test_a_sign_that_means_something_makes_it_another_question(one, other):
    left, right = READER.read(one), READER.read(other)
    assert not same_text(left, right)
    assert not nearly_exact(left, right)
    assert likeness(left, right, 0.98, 0.58) < 0
    assert likeness(right, left, 0.98, 0.58) < 0


@pytest.mark.parametrize(("one", "other"), THE_SAME)
def test_what_only_writes_it_down_does_not(one, other):
    assert nearly_exact(READER.read(one), READER.read(other))


def test_operators_that_differ_let_nothing_pass_and_hyphens_do():
    def found(one, other):
        return "signs" in differences(READER.read(one), READER.read(other))

    assert found("def area(w, h): return w * h", "def area(w, h): return w + h")
    assert found("the users where age > 3", "the users where age < 3")
    assert found("What comes out of a - b?", "What comes out of a / b?")
    assert not found("a part-time job", "one for the whole time and/or part of it")
    assert not found("What is 2 + 3?", "What is 2 plus 3?")


def test_words_with_signs_are_single_words():
    words = [word for word, _ in split_words("C++ and C# (or .NET), not AB- in 2*(3+x)!")]
    assert words == ["c++", "and", "c#", "or", ".net", "not", "ab-", "in", "2", "*", "(", "3", "+", "x", ")", "!"]


def test_who_speaks_is_no_name():
    assert [word for word, named in split_words("Now I say what I\u2019m told and I'd ask Bob") if named] == ["bob"]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(
        st.sampled_from("aC5 .,!?()+-*/=<>&|#%$'\"`_:[]{}~^@\\\n\u00b2\u00bd\u0301\u093f\u2014\U0001f60a"),
        max_size=40,
    )
)
def test_any_signs_can_be_read(text):
    words, signs, pictures, cased, cut = split(text)
    assert all(word for word, _ in words)
    assert set(signs) <= {word for word, _ in words}
    assert not cut
    assert all(not picture.isascii() for picture in pictures)
    features = READER.read(text)
    assert nearly_exact(features, READER.read(f"  {text} "))
    if not cased and not any(word.isupper() for word, _ in words):
        assert nearly_exact(features, READER.read(f"  {text.lower()} "))
    assert Features.from_json(features.to_json()) == features


LONG = "Summarise: " + "some words of a long report " * 60


@pytest.mark.parametrize("number", [1, 40, 2000])
def test_the_middle_of_a_long_question_counts(number):
    middle = "and so on " * number
    one, other = (READER.read(f"{LONG}{middle}{what} {middle}{LONG}") for what in ("profits", "losses of 7"))
    assert one.cut
    assert not same_text(one, other)
    assert not nearly_exact(one, other)
    assert differences(one, other) >= {"cut"}
    assert likeness(one, other, 1.0, 0.6) == -np.inf
    assert nearly_exact(one, READER.read(f"{LONG}{middle}profits {middle}{LONG}".upper()))


def test_where_the_regression_does_not_see_all_only_the_same_is_the_same():
    """A sign more, and the words beyond the first shift."""
    text = "Tell our pupils what comes out of {} when it is typed into it" + " and why" * (WORDS_IN_ORDER // 2)
    one, other = READER.read(text.format("2 + 3 * 4")), READER.read(text.format("(2 + 3) * 4"))
    assert not one.cut
    assert likeness(one, other, 0.995, 0.595) == -np.inf
    assert nearly_exact(one, READER.read(text.format('"2 + 3 * 4"')))


@pytest.mark.parametrize("text", ["9" * 5000 + " million", "9" * 4301, "7 " + "million " * 300, "\u1369 million"])
def test_no_number_is_too_long(text):
    features = READER.read(f"What is {text}?")
    assert nearly_exact(features, READER.read(f"what is {text}"))
    assert not nearly_exact(features, READER.read(f"What is 8 {text}?"))


def earlier(exact, content, numbers=(), words=()):
    """As it was stored before signs counted."""

    def hashes(some):
        return [READER._hash(word) for word in some]

    values = [*hashes([exact]), hashes(content), [], sorted(hashes(numbers)), False, [], [], [], [], hashes(words)]
    return Features.from_json(json.dumps(values, separators=(",", ":")).encode())


def test_what_was_stored_before_signs_counted_acts_as_it_did():
    stored = earlier("what is a + b", ["+", "b"])
    assert json.loads(stored.to_json()) == json.loads(Features.from_json(stored.to_json()).to_json())
    assert same_text(stored, READER.read("What is a + b?"))
    assert same_text(READER.read("what is A + B"), stored)
    assert not same_text(stored, READER.read("What is a + c?"))
    assert not nearly_exact(stored, READER.read("What is the + b?")), "its words are not known"
    rents = earlier("how many rents, 7 or 8", ["rent"], ["7", "8"], ["how", "many", "rents", "7", "or", "8"])
    assert nearly_exact(rents, READER.read("How many rents? 7 or 8"))
    assert not nearly_exact(rents, READER.read("How many rents: 8 or 7?"))
    assert not nearly_exact(rents, READER.read("How many rents: 7 and 8?"))


def test_what_was_stored_before_the_wording_was_kept_is_known_by_its_words():
    text = "What is the range of the Model S?"
    values = json.loads(READER.read(text).to_json())
    stored = Features.from_json(json.dumps(values[:-3]).encode())
    assert stored.version == 2
    assert json.loads(stored.to_json()) == values[:-3]
    assert same_text(stored, READER.read(text.upper()))
    assert nearly_exact(stored, READER.read("what is the range of the (Model) S"))
    assert not nearly_exact(stored, READER.read("What is the range of the Model T?"))


def test_an_earlier_hash_of_words_is_no_hash_of_a_text():
    """Of "Who invented C++?" it was that of "who invented c"."""
    assert earlier("who invented c", []).exact != READER.read("Who invented C").exact


def test_of_a_long_earlier_text_nothing_is_the_same():
    text = "many words of all kinds " * 100
    assert not same_text(earlier(text.strip(), []), READER.read(text))
