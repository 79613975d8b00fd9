"""What was replaced stays replaced when the model changes and comes back, made anew or not."""

from __future__ import annotations

import json

import pytest

from sona_stream.cli.memory import _STAYS

FRANCE = "What is the capital of France?"


def of(make, fingerprint, answer, number, **changes):
    """What was taught in the days of this model, the n-th judgement."""
    given = {"fingerprint": fingerprint, "feedback_id": f"f{number}", "request_id": f"r{number}"}
    return make.record(FRANCE, answer, space=make.space(version=fingerprint), **given, **changes)


async def anew(memory, make, key, model, answer):
    made = of(make, model, answer, 0)
    return await memory.renew(
        key, fingerprint=model, hidden=made.hidden, token_ids=made.token_ids, space=made.space
    )


def acting(memory, make, model, user="alice"):
    return make.acting(memory, FRANCE, make.viewer(user, fingerprint=model))


@pytest.fixture(params=["none", "features", "text"])
def memory_of(request, opened):
    return opened(request.param)


@pytest.mark.parametrize("way", ["forget", "undo"])
async def test_what_was_replaced_before_it_was_made_anew_does_not_come_back(memory_of, make, way):
    async with memory_of as (_, memory):
        lyon = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        taught = await memory.remember(of(make, "B", "Paris", 2))
        assert taught.superseded == (lyon.key,)
        lyon = await anew(memory, make, lyon.key, "B", "Lyon")
        paris = taught.episode
        assert lyon.superseded_by == paris.number
        assert acting(memory, make, "B") == [paris.key]
        if way == "forget":
            await memory.forget(keys=[paris.key])
            assert await memory.episodes() == []
        else:
            assert (await memory.undo(paris.key)).returned == (lyon.key,)
            assert acting(memory, make, "B") == [lyon.key]


async def test_nor_when_the_first_model_comes_back(memory_of, make):
    async with memory_of as (_, memory):
        await memory.remember(of(make, "A", "Lyon", 1))
        paris = (await memory.remember(of(make, "B", "Paris", 2))).episode
        assert acting(memory, make, "A") == []
        paris = await anew(memory, make, paris.key, "A", "Paris")
        assert acting(memory, make, "A") == [paris.key]


async def test_others_keep_what_they_said(memory_of, make):
    async with memory_of as (_, memory):
        bobs = (await memory.remember(of(make, "A", "Lyon", 1, user="bob"))).episode
        other = (await memory.remember(of(make, "A", "Lyon", 2, model="other"))).episode
        assert (await memory.remember(of(make, "B", "Paris", 3))).superseded == ()
        assert acting(memory, make, "A", "bob") == [bobs.key]
        assert len(await memory.episodes()) == 3
        assert other.superseded_by is None


async def test_what_was_accepted_of_the_new_model_replaces_no_correction_of_the_old(memory_of, make):
    async with memory_of as (_, memory):
        lyon = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        good = await memory.remember(of(make, "B", "Paris", 2, kind="accepted"))
        assert good.superseded == ()
        lyon = await anew(memory, make, lyon.key, "B", "Lyon")
        assert lyon.superseded_by is None
        assert acting(memory, make, "B") == [lyon.key]


async def test_what_an_admin_gave_to_all_replaces_what_the_old_model_had(memory_of, make):
    async with memory_of as (_, memory):
        lyon = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        await memory.promote(lyon.key, "tenant", by="boss")
        paris = (await memory.remember(of(make, "B", "Paris", 2, user="bob"))).episode
        await memory.promote(paris.key, "tenant", by="boss")
        lyon = await anew(memory, make, lyon.key, "B", "Lyon")
        assert lyon.superseded_by == paris.number
        assert acting(memory, make, "B", "carol") == [paris.key]


@pytest.mark.parametrize("first", ["older", "newer"])
async def test_answers_that_two_models_were_taught_before_are_put_in_order(memory_of, make, monkeypatch, first):
    """As they stand in a state that was written when each model's were looked at apart."""
    async with memory_of as (_, memory):
        replaced = memory._reading.replaced
        monkeypatch.setattr(memory._reading, "replaced", lambda *asked: [])
        older = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        newer = (await memory.remember(of(make, "B", "Paris", 2))).episode
        monkeypatch.setattr(memory._reading, "replaced", replaced)
        if first == "older":
            older = await anew(memory, make, older.key, "B", "Lyon")
        else:
            newer = await anew(memory, make, newer.key, "A", "Paris")
        found = {one.key: one.superseded_by for one in await memory.episodes()}
        assert found == {newer.key: None, older.key: newer.number}
        assert acting(memory, make, newer.fingerprint) == [newer.key]
        assert (await memory.undo(newer.key)).returned == (older.key,)
        assert acting(memory, make, newer.fingerprint) == [older.key]


async def test_a_restart_knows_it(opened, make):
    async with opened("text") as (_, memory):
        lyon = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        paris = (await memory.remember(of(make, "B", "Paris", 2))).episode
    async with opened("text") as (_, memory):
        lyon = await anew(memory, make, lyon.key, "B", "Lyon")
        assert (acting(memory, make, "B"), lyon.superseded_by) == ([paris.key], paris.number)
        rome = await memory.remember(of(make, "C", "Rome", 3))
        assert rome.superseded == (paris.key,)


async def test_what_tells_an_episode_from_others_in_an_export_stays_when_it_is_made_anew(memory_of, make):
    async with memory_of as (_, memory):
        lyon = (await memory.remember(of(make, "A", "Lyon", 1))).episode
        (before,) = [json.loads(line) async for line in memory.export()]
        await anew(memory, make, lyon.key, "B", "Lyon")
        (after,) = [json.loads(line) async for line in memory.export(after=before["number"])]
        assert after["key"] != before["key"]
        assert [after[name] for name in _STAYS] == [before[name] for name in _STAYS]
