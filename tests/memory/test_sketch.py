"""A question kept without its text does what the question would: no more is known of it than that."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sona_stream.engine.memory.sketch import known_by, sketch_from, sketch_of
from sona_stream.engine.memory.words import Reader
from sona_stream.episodes import KeptQuestion, Question
from sona_stream.errors import InvalidRequest
from sona_stream.kernels import load

FRANCE = "What is the capital of France?"
KERNELS = load(compiled=False)
READER = Reader(bytes(32))


def sketched(make, memory, record):
    """The same record as it comes when the question's text is not known any more."""
    sketch = memory.sketch(record.question, record.vectors)
    return dataclasses.replace(record, question=None, vectors=None, sketch=sketch, text=None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(min_size=1, max_size=80), system=st.sampled_from(["", " ", "Be brief."]), contextual=st.booleans()
)
def test_a_sketch_says_of_a_question_what_an_episode_keeps_of_it(make, text, system, contextual):
    record = make.record(text, system=system, contextual=contextual)
    static, head = known_by(record, READER, KERNELS)
    sketch = sketch_of(record.question, record.vectors, READER, KERNELS)
    bare = dataclasses.replace(record, question=None, vectors=None, sketch=sketch)
    again, same = known_by(bare, READER, KERNELS)
    assert again.values.tobytes() == static.values.tobytes()
    assert (same.words, same.space_version) == (head.words, record.space.version)
    for one, other in ((same.contextual, head.contextual), (same.system, head.system)):
        assert (one is None) == (other is None)
        assert one is None or (one.values.tobytes(), one.inverse) == (other.values.tobytes(), other.inverse)


@pytest.mark.parametrize("contextual", [True, False])
@pytest.mark.parametrize("system", ["", "Answer in one sentence, warmly and without lists."])
async def test_a_correction_by_a_sketch_acts_as_one_by_its_question(opened, make, contextual, system):
    shape = {"contextual": contextual, "system": system}
    asked = {"contextual": contextual, "system": system}
    async with opened() as (_, memory):
        record = make.record(FRANCE, **shape)
        first = (await memory.remember(record)).episode
        assert make.acting(memory, FRANCE, **asked) == [first.key]
        known = await memory.remember(sketched(make, memory, record))
        assert known.known
        assert known.episode.key == first.key
        second = await memory.remember(sketched(make, memory, make.record(FRANCE, "Paris", **shape)))
        assert second.superseded == (first.key,)
        assert make.acting(memory, FRANCE, **asked) == [second.episode.key]
        assert make.acting(memory, "How do I bake bread?", **asked) == []
        assert make.acting(memory, FRANCE, make.viewer("bob"), **asked) == []


async def test_what_is_kept_is_found_after_a_restart_and_names_nobody_elses(opened, make, folder):
    secret = "zanzibarian flugelhorn"
    record = make.record(f"Who owns the {secret}?")
    async with opened() as (_, memory):
        sketch = memory.sketch(record.question, record.vectors)
        await memory.keep_questions([KeptQuestion("acme", "alice", "r1", sketch)])
        await memory.keep_questions([])
    async with opened() as (_, memory):
        assert await memory.kept_question("acme", "r1") == sketch
        assert await memory.kept_question("other", "r1") is None
        assert await memory.kept_question("acme", "r2") is None
        given = dataclasses.replace(record, question=None, vectors=None, sketch=sketch, text=None)
        kept = (await memory.remember(given)).episode
        assert make.acting(memory, f"who owns the {secret}") == [kept.key]
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not any(word.encode() in data.lower() for word in secret.split()), path


@pytest.mark.parametrize("storage", ["none", "text"])
async def test_other_storages_keep_none(opened, make, storage):
    async with opened("features") as (_, memory):
        record = make.record()
        await memory.keep_questions(
            [KeptQuestion("acme", None, "r1", memory.sketch(record.question, record.vectors))]
        )
    async with opened(storage) as (_, memory):
        assert (await memory.kept_question("acme", "r1") is None) == (storage == "none")


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_sketch_is_told(make, data):
    record = make.record()
    whole = sketch_of(record.question, record.vectors, READER, KERNELS)
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError):
        sketch_from(whole[:end])


async def test_a_record_without_a_question_is_refused_by_name(opened, make):
    async with opened() as (_, memory):
        record = make.record()
        bare = dataclasses.replace(record, question=None, vectors=None)
        with pytest.raises(InvalidRequest) as refused:
            await memory.remember(bare)
        assert refused.value.param == "question"
        for damaged in (b"x", memory.sketch(record.question, record.vectors)[:-1]):
            with pytest.raises(InvalidRequest) as refused:
                await memory.remember(dataclasses.replace(bare, sketch=damaged))
            assert refused.value.param == "sketch"
        small = dataclasses.replace(record.vectors, static=record.vectors.static[:8])
        with pytest.raises(InvalidRequest, match="256 dimensions"):
            await memory.remember(dataclasses.replace(bare, sketch=memory.sketch(Question(FRANCE), small)))
