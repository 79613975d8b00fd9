"""The prompts of `benchmarks/learning.py`: counts, halves, and that nothing is there twice."""

import collections
import itertools
import json
import re
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "benchmarks" / "learning_data"
COUNTS = {
    "corrections": 200,
    "same_form": 200,
    "near_miss": 100,
    "unrelated": 200,
    "contradictions": 20,
    "long_answers": 20,
    "multi_turn": 20,
}


def lines(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(text):
    return " ".join(re.findall(r"[\w+]+", text.lower()))


@pytest.fixture(scope="module")
def corrections():
    return {each["id"]: each for each in lines("corrections")}


@pytest.mark.parametrize("name", COUNTS)
def test_every_file_is_complete_and_halved(name):
    rows = lines(name)
    assert len(rows) == COUNTS[name]
    assert len({row["id"] for row in rows}) == len(rows)
    halves = collections.Counter(row["split"] for row in rows)
    if name == "contradictions":
        assert set(halves) == {"fit", "report"}
    else:
        assert halves == {"fit": len(rows) // 2, "report": len(rows) // 2}
    assert not [row for row in rows if not all(str(value).strip() for value in row.values())]


def test_a_family_lies_in_one_half_with_all_that_hangs_on_it(corrections):
    families = collections.defaultdict(set)
    for each in corrections.values():
        families[each["family"]].add(each["split"])
    assert all(len(splits) == 1 for splits in families.values())
    assert len(families) >= 40
    for name, field in (("same_form", "like"), ("near_miss", "correction"), ("contradictions", "correction")):
        for row in lines(name):
            assert row["split"] == corrections[row[field]]["split"], row["id"]


def test_corrections_are_told_apart_and_well_formed(corrections):
    for each in corrections.values():
        assert len(each["paraphrases"]) >= 3, each["id"]
        assert 2 <= len(each["answer"].split()) <= 30, each["id"]
        assert each["answer"] == each["answer"].strip()
        assert each["answer"][0].isupper() or each["answer"][0] == '"'
        assert each["answer"][-1] in '.".', each["id"]
    answers = [each["answer"] for each in corrections.values()]
    assert len(set(answers)) == len(answers)


def test_no_prompt_is_there_twice(corrections):
    prompts = [each["prompt"] for each in corrections.values()]
    prompts += [text for each in corrections.values() for text in (*each["paraphrases"], *each["situations"])]
    prompts += [
        row["prompt"] for name in ("same_form", "near_miss", "unrelated", "long_answers") for row in lines(name)
    ]
    prompts += [text for row in lines("long_answers") for text in row["paraphrases"]]
    assert [text for text, n in collections.Counter(map(plain, prompts)).items() if n > 1] == []
    assert all((text == text.strip() and len(text.split()) >= 3) or text == "Write our slogan." for text in prompts)


def test_paraphrases_are_really_worded_otherwise(corrections):
    for each in corrections.values():
        asked = [plain(text) for text in (each["prompt"], *each["paraphrases"])]
        for one, other in itertools.combinations(asked, 2):
            assert one != other
            assert not one.startswith(other), each["id"]
        words = [set(text.split()) for text in asked]
        shares = [len(words[0] & other) / len(words[0] | other) for other in words[1:]]
        assert sum(shares) / len(shares) <= 0.6, (each["id"], shares)
        assert min(shares) <= 0.5, each["id"]


def test_near_misses_differ_by_little_and_say_how(corrections):
    kinds = collections.Counter(row["kind"] for row in lines("near_miss"))
    assert {"entity", "opposite", "negation", "number", "person", "time", "place"} <= set(kinds)
    for row in lines("near_miss"):
        asked, other = (
            set(plain(text).split()) for text in (row["prompt"], corrections[row["correction"]]["prompt"])
        )
        assert asked != other or plain(row["prompt"]) != plain(corrections[row["correction"]]["prompt"])
        assert len(asked & other) / len(asked | other) >= 0.3, row["id"]


def test_same_form_prompts_begin_like_their_correction(corrections):
    for row in lines("same_form"):
        asked, other = (plain(text).split() for text in (row["prompt"], corrections[row["like"]]["prompt"]))
        assert asked[0] == other[0], row["id"]
        assert asked != other


def test_newer_answers_say_something_else(corrections):
    for row in lines("contradictions"):
        assert row["answer"] != corrections[row["correction"]]["answer"]


def test_long_answers_are_long_and_hold_their_fact():
    for row in lines("long_answers"):
        assert len(row["answer"].split()) >= 45, row["id"]
        assert row["answer"].count(row["fact"]) == 1, row["id"]
        assert len(row["paraphrases"]) >= 2


def test_conversations_end_with_the_user():
    for row in lines("multi_turn"):
        for part in ("messages", "reworded", "other"):
            assert [turn["role"] for turn in row[part]] == ["user", "assistant", "user"], row["id"]
        assert row["other"] != row["messages"] != row["reworded"]
        assert row["other"][0] != row["messages"][0] or row["other"][2] != row["messages"][2]


def test_small_words_change_nothing_but_small_words():
    rows = lines("small_words")
    assert collections.Counter(row["split"] for row in rows) == {"fit": 90, "report": 30}
    assert len({row["id"] for row in rows}) == len(rows)
    texts = [text for row in rows for text in (row["prompt"], *row["harmless"], *row["harmful"])]
    assert len(set(texts)) == len(texts) == 7 * len(rows)
    assert all(len(row["harmless"]) == len(row["harmful"]) == 3 for row in rows)
    others = {plain(row["prompt"]) for name in ("corrections", "near_miss", "gate_training") for row in lines(name)}
    assert not others & {plain(text) for text in texts}
