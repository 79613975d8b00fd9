"""Which differences do not matter: only those let a question pass without any judgement."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory import question_of
from sona_stream.engine.memory.comparison import VETOES, differences, likeness, nearly_exact, same_text
from sona_stream.engine.memory.sentences import requests
from sona_stream.engine.memory.tokens import split, split_words
from sona_stream.engine.memory.wording import wording
from sona_stream.engine.memory.wordlists import EMPTY, OPENING
from sona_stream.engine.memory.words import Features, Reader

READER = Reader(b"secret" * 6)
MAY_I = "\u6211\u53ef\u4ee5\u9000\u6b3e\u5417"
MAY_I_NOT = "\u6211\u4e0d\u53ef\u4ee5\u9000\u6b3e\u5417"
THREE_DAYS = "\u4e09\u5929\u5185\u53ef\u4ee5\u9000\u6b3e\u5417"
FIVE_DAYS = "\u4e94\u5929\u5185\u53ef\u4ee5\u9000\u6b3e\u5417"
THIRTY_DAYS = "\u4e09\u5341\u5929\u5185\u53ef\u4ee5\u9000\u6b3e\u5417"
FRANCE = "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u4ec0\u4e48"
GERMANY = "\u5fb7\u56fd\u7684\u9996\u90fd\u662f\u4ec0\u4e48"
RETURN = "\u8fd4\u54c1\u3067\u304d\u307e\u3059\u304b"
NO_RETURN = "\u8fd4\u54c1\u3067\u304d\u307e\u305b\u3093\u304b"
MONEY_BACK = "\u0e02\u0e2d\u0e04\u0e37\u0e19\u0e40\u0e07\u0e34\u0e19"
CHANGE = "\u0e02\u0e2d\u0e40\u0e1b\u0e25\u0e35\u0e48\u0e22\u0e19"

ANOTHER = [
    ("How is hepatitis A transmitted?", "How is hepatitis D transmitted?"),
    ("Is vitamin a good for me?", "Is vitamin d good for me?"),
    ("What is the range of the Model S?", "What is the range of the Model T?"),
    ("What does plan A cost us?", "What does a plan cost us?"),
    ("what does plan a cost us", "what does a plan cost us"),
    ("What is the US tax rate?", "What is the tax rate?"),
    ("Who leads the IT department?", "Who leads the department?"),
    ("What is IT?", "What is it?"),
    ("Who helps US?", "Who helps us?"),
    ("What does AND return in SQL?", "What does OR return in SQL?"),
    ("How do I write a `for` loop in Python?", "How do I write a `with` loop in Python?"),
    ("What does \u201cthe\u201d mean?", "What does \u201can\u201d mean?"),
    ("What does foo(a, b) return?", "What does foo(b, a) return?"),
    ("What does f(a)(b) do?", "What does f(a, b) do?"),
    ('What does print("1") show?', "What does print(1) show?"),
    ('What is "1" + "1"?', "What is 1 + 1?"),
    ("Who is the CEO of Lidl?", "Who was the CEO of Lidl?"),
    ("Can visitors park here?", "Must visitors park here?"),
    ("Do you serve tea and coffee?", "Do you serve tea or coffee?"),
    ("Who wrote Hamlet?", "Who wrote about Hamlet?"),
    ("Do I owe you money?", "Do you owe me money?"),
    ("Who sees my data?", "Who sees her data?"),
    ("Shall I pay?", "Will I pay?"),
    ("What is the matter?", "What is matter?"),
    ("What is the time?", "What is time?"),
    ("Is he in the charge of a nurse?", "Is he in charge of a nurse?"),
    ("What is a refund policy in retail?", "What is our refund policy in retail?"),
    ("What is our cost of capital?", "What is the cost of capital?"),
    ("Which rooms have exactly 5 beds?", "Which rooms have 5 beds?"),
    ("Well water quality in Ghent?", "Water quality in Ghent?"),
    ("How do they give thanks?", "How do they give?"),
    ("Do a few people know the code?", "Do few people know the code?"),
    ("Are glasses recyclable?", "Is glass recyclable?"),
    ("Is the child bored?", "Is the child boring?"),
    ("How much is 1 plane?", "How much is 1 plan?"),
    ("How long is a second?", "How long is two?"),
    ("Tell me a joke", "What is a joke?"),
    ("Tell me the truth", "What is the truth?"),
    ("Do you know the way to Rome?", "What is the way to Rome?"),
    ("How do you spell please?", "How do you spell?"),
    ("How do they say thanks?", "How do they say?"),
    ("Hello, World", "World"),
    ("Where'd he go?", "Where would he go?"),
    ("How do I install Python 3.10?", "How do I install Python 3.1?"),
    ("What is new in Python 3.0?", "What is new in Python 3?"),
    ("Who is agent 007?", "Who is agent 7?"),
    ("What is in room 0123?", "What is in room 123?"),
    ("Can I run it on 5 mW?", "Can I run it on 5 MW?"),
    ("How long does 1MB take?", "How long does 1Mb take?"),
    ("What does grep -v do?", "What does grep -V do?"),
    ("What is x\u00b2 + 1?", "What is x2 + 1?"),
    ("What does ?? do in C#?", "What does ?. do in C#?"),
    ("What does !! do in Kotlin?", "What does ?? do in Kotlin?"),
    ("What is the ! operator?", "What is the ? operator?"),
    ("What does . match in a regex?", "What does ? match in a regex?"),
    ("What does : mean in Python?", "What does ; mean in Python?"),
    (MAY_I, MAY_I_NOT),
    ("Berlin?", "Munich?"),
    ("refund", "exchange"),
    ("Who are you?", "Who am I?"),
]

THE_SAME = [
    ("what is the capital of france", "Please tell me what the capital of France is"),
    ("What is the capital of France?", "what's the capital of France"),
    ("What is the capital of France?", "Could you please tell me what the capital of France is?"),
    ("What is the capital of France?", "Hello! Tell me the capital of France. Thanks!"),
    ("What is the capital of France?", "Hi, what is the capital of France please"),
    ("What is the capital of France?", "So what is capital of France?"),
    ("What is the capital of France?", "The capital of France?"),
    ("WHAT IS THE CAPITAL OF FRANCE?", "What is the capital of France?"),
    ("How long is the refund window?", "how long is refund window"),
    ("I'd like to know who wrote Hamlet", "Who wrote Hamlet?"),
    ("Do you know who wrote Hamlet?", "Who wrote Hamlet?"),
    ("Can't I pay by card?", "Cannot I pay by card?"),
    ("I'm lost, where's the exit?", "I am lost, where is the exit?"),
    ("How much RAM is 16 GB?", "how much ram is 16 gb"),
    ("Do I HAVE to pay at 10 AM?", "do I have to pay at 10 am?"),
    ("What costs 5.00 \u20ac?", "what costs 5 \u20ac"),
    ("What weighs 2.50 kilograms?", "What weighs 2.5 kilograms?"),
    ("What is 2.0 + 3?", "What is 2 + 3?"),
    ("Is it open at 09:30?", "is it open at 9:30"),
    (THREE_DAYS, f"\u8bf7\u95ee 3{THREE_DAYS[1:]}\uff1f"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ANOTHER)
def test_another_question_does_not_pass_unjudged(one, other):
    left, right = READER.read(one), READER.read(other)
    assert not same_text(left, right)
    assert not nearly_exact(left, right)
    assert not nearly_exact(right, left)


@pytest.mark.parametrize(("one", "other"), THE_SAME)
def test_the_same_in_the_same_words_does(one, other):
    left, right = READER.read(one), READER.read(other)
    assert nearly_exact(left, right)
    assert nearly_exact(right, left)
    assert not differences(left, right) & VETOES


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 9), word=st.sampled_from(sorted(EMPTY - OPENING)), other=st.sampled_from(sorted(EMPTY)))
def test_any_word_put_in_counts_but_for_the_and_politeness(at, word, other):
    words = ["which", "train", "from", "Ghent", "to", "Bruges", "was", "late", "on", "Monday"]
    one, two = (" ".join([*words[:at], put, *words[at:]]) for put in (word, other))
    alike = READER.read(one).wording == READER.read(two).wording
    pairs = [{"is", "are", "am"}, {"was", "were"}, {"do", "does"}, {"have", "has"}, {"who", "whom"},
             {"what", "which"}, {"can", "may"}]  # fmt: skip
    silent = {"the", "please", *OPENING}
    assert not alike or word == other or any({word, other} <= pair for pair in pairs) or {word, other} <= silent


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_a_wording(text):
    assert wording(text) == wording(text)
    features = READER.read(text)
    assert Features.from_json(json.dumps(json.loads(features.to_json())).encode()) == features
    assert all(isinstance(one, str) for one in requests(text))


@pytest.mark.parametrize(
    "text",
    ["a" + "\n" * 9000 + "b", "a" + " " * 9000 + "b", "1," * 4500 + "x", "a?! " * 2000, "f(" * 4500, "." * 9000],
)
def test_no_text_takes_long(text):
    began = time.process_time()
    READER.read(text)
    assert time.process_time() - began < 5, "far below a second; a pattern that goes back and back takes minutes"


def vetoes(one, other):
    return differences(READER.read(one), READER.read(other)) & VETOES


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("Berlin?", "Munich?", "apart"),
        ("refund", "exchange", "apart"),
        ("Who are you?", "Who am I?", "apart"),
        ("Should we pay them?", "Should they pay us?", "opposites"),
        ("Who pays me for the tickets?", "Who do I pay for the tickets?", "opposites"),
        ("Is 5 mW much for a diode?", "Is 5 MW much for a town?", "opposites"),
        ("grep -v x", "grep -V x", "opposites"),
        (MAY_I, MAY_I_NOT, "opposites"),
        (RETURN, NO_RETURN, "opposites"),
        (THREE_DAYS, FIVE_DAYS, "numbers"),
        (THREE_DAYS, THIRTY_DAYS, "numbers"),
        (FRANCE, GERMANY, "unread"),
        (MONEY_BACK, CHANGE, "unread"),
        ("How long is it?", "How long is it? And do you ship to Norway?", "more"),
        ("What is the capital of France?", "What is the capital of France? What is the capital of Italy?", "more"),
        ("How long is the refund window?", "How long is the refund window? Translate the answer.", "more"),
    ],
)  # fmt: skip
def test_what_lets_nothing_pass_however_near(one, other, name):
    assert name in vetoes(one, other)
    assert name in vetoes(other, one)
    assert likeness(READER.read(one), READER.read(other), 1.0, 0.6) == -math.inf


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("When do we water the greenhouse?", "It is my turn with the greenhouse. When must I water?"),
        ("What is the Wi-Fi called in Porto?", "I have a client in Porto. What is the network's name?"),
        ("Who teaches us welding?", "Of whom do we learn to weld?"),
        ("Who is our chief executive?", "What is the CEO's name?"),
        ("What holds 16 GB?", "what holds 16 gb of music?"),
    ],
)
def test_what_may_be_the_same_is_judged(one, other):
    assert not vetoes(one, other)


def test_requests_are_questions_and_commands():
    assert requests("What is it? I ask for a friend. And who made it?") == ["What is it?", "And who made it?"]
    assert requests("I am new here. What is it?") == []
    assert requests("Find the file. Then translate it to Dutch.") == []
    assert requests("Who is it? Please translate it.") == ["Who is it?", "Please translate it."]
    assert requests("What does ?? do in C#?") == []
    assert requests("\u8c01\u5199\u7684\uff1f\u591a\u5c11\u94b1\uff1f") == [
        "\u8c01\u5199\u7684\uff1f",
        "\u591a\u5c11\u94b1\uff1f",
    ]


def test_each_character_of_a_script_without_spaces_is_a_word():
    words = [word for word, _ in split_words("iPhone\u624b\u673a15\u53f0")]
    assert words == ["iphone", "\u624b", "\u673a", "15", "\u53f0"]
    assert [word for word, _ in split_words("\u4e8c\u5341\u4e09\u5929")] == ["\u4e8c\u5341\u4e09", "\u5929"]
    thai = [word for word, _ in split_words("\u0e04\u0e37\u0e19\u0e40\u0e07\u0e34\u0e19")]
    assert thai == ["\u0e04\u0e37", "\u0e19", "\u0e40", "\u0e07\u0e34", "\u0e19"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\u4e8c\u5341\u4e09", "23"),
        ("\u4e09\u767e\u96f6\u4e94", "305"),
        ("\u4e24\u4e07\u4e94\u5343", "25000"),
        ("\u4e09\u4ebf\u4e94\u5343\u4e07", "350000000"),
        ("\u5341\u4e8c\u4ebf", "1200000000"),
        ("\u4e8c\u3007\u4e8c\u516d", "2026"),
        ("three hundred", "300"),
        ("$5.00", "5"),
        ("version 3.10", "3.10"),
        ("007", "007"),
        ("09:30", "9:30"),
    ],
)
def test_numbers_have_values(text, value):
    assert READER.read(text).numbers == READER.read(f"x {value}").numbers


def test_options_units_and_words_spoken_of_keep_their_case():
    assert split("grep -v and -V, 5 mW, 5MW, 16 gb, 5 g, 5 Days").cased == ["-v", "-V", "mW", "MW", "g", "Days"]
    assert split("GREP 5 KM OF IT").cased == []
    words = [word for word, _ in split_words("Is IT ok, or vitamin A, or 'for'? Do I HAVE to? A dog.")]
    assert words == ["is", "IT", "ok", "or", "vitamin", "A", "or", "FOR", "do", "i", "have", "to", "a", "dog"]


def test_a_whole_question_in_chinese_stands_by_itself_and_a_few_characters_do_not():
    def before(text):
        return question_of([{"role": "user", "content": one} for one in ("Hello, my invoice is lost", text)]).before

    assert before(FRANCE) == ""
    assert before("\u610f\u5927\u5229\u5462") != ""
