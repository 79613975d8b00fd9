"""One correction sticks: what acts on which question, for whom, before and after a restart."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time

import numpy as np
import pytest

from sona_stream.engine.memory import EpisodeMemory
from sona_stream.episodes import EpisodeText, Question
from sona_stream.errors import InvalidRequest, NotFound, StateError

FRANCE = "What is the capital of France?"
STORAGES = ["none", "features", "text"]


@pytest.mark.parametrize("storage", STORAGES)
async def test_a_correction_acts_at_once_and_comes_back_as_it_was(opened, make, storage):
    async with opened(storage) as (_, memory):
        given = make.record()
        assert not memory.holds(make.viewer())
        kept = (await memory.remember(given)).episode
        assert memory.holds(make.viewer())
        assert make.acting(memory, FRANCE) == [kept.key]
        states = memory.states(kept.key)
        np.testing.assert_array_equal(states.token_ids, given.token_ids)
        error = np.abs(states.hidden - given.hidden) / given.space.spread
        largest = np.abs((given.hidden - given.space.mean) / given.space.spread).max(axis=1, keepdims=True)
        assert (error <= largest / 254 + 1e-4).all()
        np.testing.assert_array_equal(states.space.mean, given.space.mean)
        assert kept.request_id == "r1"
        assert (kept.user, kept.scope, kept.tokens, kept.answer_tokens) == ("alice", "person", 5, 5)
        assert (kept.text is not None) == (storage == "text")
        assert memory.durable == (storage != "none")


async def test_it_survives_a_restart_with_its_uses(opened, make):
    async with opened("text") as (_, memory):
        kept = (await memory.remember(make.record())).episode
        for _ in range(3):
            make.acting(memory, FRANCE)
    async with opened("text") as (_, memory):
        assert make.acting(memory, FRANCE) == [kept.key]
        found = await memory.find(kept.key)
        assert found == dataclasses.replace(kept, uses=3)
        assert found.text == EpisodeText(answer="Lyon", body=b'{"messages": []}')
        assert found.question == Question(FRANCE)
        assert memory.states(kept.key) is not None


async def test_at_none_nothing_survives_or_reaches_the_disk(opened, make, folder):
    async with opened("none") as (_, memory):
        await memory.remember(make.record())
    assert not (folder / "episodes").exists()
    async with opened("none") as (_, memory):
        assert make.acting(memory, FRANCE) == []


async def test_a_lowered_storage_takes_away_what_was_kept(opened, make, folder):
    async with opened("text") as (_, memory):
        key = (await memory.remember(make.record(answer="needle-in-text"))).episode.key
    async with opened("features") as (_, memory):
        assert (await memory.find(key)).text is None
        assert make.acting(memory, FRANCE) == [key]
    assert b"needle-in-text" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    async with opened("none") as (store, memory):
        assert await store.episode_store.entries() == []
    (segment,) = folder.glob("episodes/*")
    assert not any(segment.read_bytes()[32:]), "the record's header marks it dead, the rest is overwritten"


async def test_words_are_not_in_the_files_at_features(opened, make, folder):
    async with opened("features") as (_, memory):
        await memory.remember(make.record("Where is the zanzibarium of Quxfordshire?", answer="behindthehill"))
    data = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file()).lower()
    for word in (b"zanzibarium", b"quxfordshire", b"behindthehill"):
        assert word not in data


async def test_nothing_acts_on_other_questions(opened, make):
    async with opened() as (_, memory):
        await memory.remember(make.record())
        for other in (
            "What is the capital of Italy?",
            "What is not the capital of France?",
            "Name a good cheese",
            "What is the capital of France and of Italy?",
        ):
            assert make.acting(memory, other) == [], other


async def test_without_the_contextual_encoder_near_exact_matches_only(opened, make):
    async with opened() as (_, memory):
        key = (await memory.remember(make.record(contextual=False))).episode.key
        asks = {
            "what is the capital of france": [key],
            "Please tell me what the capital of France is": [key],
            "What's the capital of Italy?": [],
            "Which city is the capital of France?": [],
        }
        for text, expected in asks.items():
            assert make.acting(memory, text, contextual=False) == expected, text
            assert make.acting(memory, text, contextual=True) == expected, text  # the episode has no such vector


async def test_the_newest_wins_and_undo_returns_the_older(opened, make):
    async with opened() as (_, memory):
        older = await memory.remember(make.record(answer="Lyon"))
        newer = await memory.remember(make.record(answer="Paris", feedback_id="f2"))
        assert newer.superseded == (older.episode.key,)
        assert make.acting(memory, FRANCE) == [newer.episode.key]
        third = await memory.remember(make.record(answer="Nice"))
        assert make.acting(memory, FRANCE) == [third.episode.key]
        undone = await memory.undo(third.episode.key)
        assert undone.episode.key == third.episode.key
        assert undone.returned == (newer.episode.key,)
        assert make.acting(memory, FRANCE) == [newer.episode.key]
    async with opened() as (_, memory):
        assert make.acting(memory, FRANCE) == [newer.episode.key]
        undone = await memory.undo(newer.episode.key)
        assert undone.episode.feedback_id == "f2"
        assert make.acting(memory, FRANCE) == [older.episode.key]
        assert (await memory.undo(older.episode.key)).returned == ()
        assert make.acting(memory, FRANCE) == []
        assert await memory.undo(older.episode.key) is None


async def test_one_between_others_can_be_undone(opened, make):
    async with opened() as (_, memory):
        first, second, third = [
            (await memory.remember(make.record(answer=answer, feedback_id=answer))).episode.key
            for answer in ("Lyon", "Paris", "Nice")
        ]
        assert (await memory.undo(second)).returned == ()
        assert make.acting(memory, FRANCE) == [third]
        assert (await memory.undo(third)).returned == (first,)
        assert make.acting(memory, FRANCE) == [first]


async def test_the_same_judgement_again_stores_nothing(opened, make):
    async with opened() as (_, memory):
        first = await memory.remember(make.record())
        again = await memory.remember(make.record())
        assert again.known
        assert again.episode.key == first.episode.key
        accepted = await memory.remember(make.record(answer="Marseille", kind="accepted", feedback_id="f2"))
        assert accepted.known, "an accepted answer does not overrule a correction"
        assert len(await memory.episodes()) == 1


async def test_promotion_widens_who_it_acts_for(opened, make):
    async with opened() as (_, memory):
        kept = (await memory.remember(make.record())).episode
        bob, stranger = make.viewer("bob"), make.viewer("eve", "other")
        assert make.acting(memory, FRANCE, bob) == make.acting(memory, FRANCE, stranger) == []
        promoted = await memory.promote(kept.key, "tenant", by="boss")
        assert (promoted.key, promoted.scope, promoted.promoted_by) == (kept.key, "tenant", "boss")
        assert make.acting(memory, FRANCE, bob) == [kept.key]
        assert make.acting(memory, FRANCE, stranger) == []
        own = (await memory.remember(make.record(answer="Paris", user="bob"))).episode
        assert make.acting(memory, FRANCE, bob) == [own.key], "one's own before the tenant's"
        assert make.acting(memory, FRANCE) == [kept.key]
        with pytest.raises(InvalidRequest, match="scope"):
            await memory.promote(kept.key, "tenant", by="boss")
        await memory.promote(kept.key, "global", by="boss")
    async with opened() as (_, memory):
        assert make.acting(memory, FRANCE, stranger) == [kept.key]
        assert memory.holds(stranger)
        assert await memory.forget(tenant="other", keys=[kept.key]) == ()
        assert await memory.forget(tenant="acme", keys=[kept.key]) == (kept.key,)
        assert make.acting(memory, FRANCE, stranger) == []
        with pytest.raises(NotFound):
            await memory.promote(kept.key, "tenant", by="boss")


@pytest.mark.parametrize("storage", ["features", "none"])
async def test_a_promoted_answer_supersedes_the_tenants_older_one(opened, make, storage):
    async with opened(storage) as (_, memory):
        oldest = (await memory.remember(make.record(answer="Nice", user="bob"))).episode
        first = (await memory.remember(make.record())).episode
        second = (await memory.remember(make.record(answer="Paris", user="bob"))).episode
        await memory.promote(first.key, "tenant", by="boss")
        await memory.promote(second.key, "tenant", by="boss")
        assert make.acting(memory, FRANCE, make.viewer("carol")) == [second.key]
        with pytest.raises(InvalidRequest, match="newer"):
            await memory.promote(first.key, "global", by="boss")
        assert set(await memory.forget(tenant="acme", keys=[second.key])) == {second.key}
        assert await memory.episodes() == [], "what was superseded goes with what superseded it"
        assert make.acting(memory, FRANCE, make.viewer("carol")) == make.acting(memory, FRANCE) == []
        with pytest.raises(NotFound):
            await memory.promote(oldest.key, "tenant", by="boss")


@pytest.mark.parametrize("storage", ["features", "none"])
@pytest.mark.parametrize("way", ["expired", "evicted", "by key"])
async def test_what_an_admin_had_replaced_does_not_come_back_unasked(opened, make, storage, way):
    async with opened(storage, tenant_episodes=3) as (store, memory):
        his = (await memory.remember(make.record(answer="Paris", user="bob"))).episode
        await asyncio.sleep(0.2)
        hers = (await memory.remember(make.record(tenant="other"))).episode
        for one in (hers, his):
            await memory.promote(one.key, "global", by="boss")
        assert make.acting(memory, FRANCE, make.viewer("carol")) == [his.key]
        if way == "by key":
            await memory.forget(keys=[his.key])
        elif way == "evicted":
            for text in ("Where is Town1?", "Where is Town2?", "Where is Town3?"):
                await memory.remember(make.record(text, answer=text))
                assert make.acting(memory, text) == make.acting(memory, text) != []
        elif storage == "none":
            memory._writing._ttl_s = time.time() - his.stored_at - 0.05
            await memory.settle()
        else:
            await store.expire(now=his.stored_at + 30 * 86400 + 0.05)
        assert await memory.find(his.key) is None
        assert make.acting(memory, FRANCE, make.viewer("carol")) == make.acting(memory, FRANCE) == []
        assert await memory.find(hers.key) is None


@pytest.mark.parametrize("storage", ["features", "none"])
async def test_whom_a_person_had_superseded_who_is_forgotten_in_the_memory_is_heard_again(opened, make, storage):
    async with opened(storage) as (_, memory):
        his_first = (await memory.remember(make.record(answer="Nice", user="bob"))).episode
        hers = (await memory.remember(make.record())).episode
        his = (await memory.remember(make.record(answer="Paris", user="bob"))).episode
        for one in (hers, his):
            await memory.promote(one.key, "tenant", by="boss")
        assert set(await memory.forget(tenant="acme", person="user:bob")) == {his_first.key, his.key}
        assert [one.key for one in await memory.episodes()] == [hers.key]
        assert make.acting(memory, FRANCE, make.viewer("carol")) == make.acting(memory, FRANCE) == [hers.key]


async def test_whom_a_forgotten_person_had_superseded_is_heard_again(opened, make):
    async with opened() as (store, memory):
        said = ("Lyon", "alice", "acme"), ("Paris", "bob", "acme"), ("Nice", "eve", "other")
        hers, his, last = [
            (await memory.remember(make.record(answer=answer, user=user, tenant=tenant))).episode
            for answer, user, tenant in said
        ]
        for one in (hers, his, last):
            await memory.promote(one.key, "global", by="boss")
        carol = make.viewer("carol", "third")
        assert make.acting(memory, FRANCE, carol) == [last.key]
        await store.forget(tenant="acme", user="bob")  # he stands between the two
        assert make.acting(memory, FRANCE, carol) == [last.key]
        await store.forget(tenant="other")
        assert make.acting(memory, FRANCE, carol) == make.acting(memory, FRANCE) == [hers.key]
    async with opened() as (_, memory):
        assert make.acting(memory, FRANCE, carol) == [hers.key]
        assert (await memory.find(hers.key)).superseded_by is None


async def test_a_thousand_corrections_of_one_user_are_not_even_looked_at(opened, make):
    async with opened() as (store, memory):
        for number in range(40):  # through the front door
            await memory.remember(make.record(f"What is the capital of Zone{number}?", answer=str(number)))
        looked = []
        real = store.episode_store.head
        store.episode_store.head = lambda place: looked.append(place) or real(place)
        index = memory._index
        template = (await store.episode_store.entries())[0]
        for number in range(1000, 1960):
            index.add(template._replace(number=number))
        for who in (make.viewer("bob"), make.viewer(None, key_id="k1"), make.viewer("alice", "other")):
            assert not memory.holds(who)
            for number in range(40):
                assert make.acting(memory, f"What is the capital of Zone{number}?", who) == []
        assert looked == []
        assert memory.counters().get("searches", 0) == 0
        other_model = make.viewer("alice", fingerprint="other")
        assert not memory.holds(other_model)
        assert len(make.acting(memory, "What is the capital of Zone7?")) == 1


async def test_people_are_forgotten_and_hosts_are_told(opened, make):
    async with opened("text") as (store, memory):
        told = []
        memory.on_gone = told.extend
        mine = (await memory.remember(make.record())).episode.key
        other = (await memory.remember(make.record(user="bob"))).episode.key
        removed = await store.forget(tenant="acme", user="alice")
        assert removed["episodes"] == 1
        assert told == [mine]
        assert memory.states(mine) is None
        assert make.acting(memory, FRANCE) == []
        assert await memory.forget(tenant="acme", person="user:bob") == (other,)
        assert told == [mine, other]
        with pytest.raises(InvalidRequest):
            await memory.forget()


async def test_it_expires_with_the_features(opened, make):
    async with opened() as (store, memory):
        key = (await memory.remember(make.record())).episode.key
        await store.expire(now=1e12)
        assert make.acting(memory, FRANCE) == []
        assert await memory.find(key) is None
    memory = EpisodeMemory(None, compiled=False)
    async with memory:
        await memory.remember(make.record())
        await memory.settle()
        assert len(make.acting(memory, FRANCE)) == 1
        memory._writing._ttl_s = -1.0
        await memory.settle()
        assert make.acting(memory, FRANCE) == []


@pytest.mark.parametrize("storage", ["none", "features"])
async def test_a_tenant_keeps_what_is_used(opened, make, storage):
    async with opened(storage, tenant_episodes=5) as (_, memory):
        texts = [f"What is the capital of Zone{number}?" for number in range(9)]
        for number, text in enumerate(texts):
            await memory.remember(make.record(text, answer=str(number)))
            make.acting(memory, texts[0])
        await memory.remember(make.record(texts[0], answer="elsewhere", tenant="other"))
        alive = [text for text in texts if make.acting(memory, text)]
        assert len(alive) == 5
        assert texts[0] in alive, "used ones stay"
        assert texts[8] in alive, "so does the newest"
        assert memory.counters()["evicted"] == 4


async def test_bytes_are_bounded_too(opened, make):
    async with opened(tenant_mb=1, max_tokens=600) as (_, memory):
        big = make.space(512)
        for number in range(8):
            await memory.remember(make.record(f"What is Zone{number}?", answer=str(number), tokens=600, space=big))
        assert memory.counters()["bytes"] <= 1 << 20
        assert memory.counters()["episodes"] == 3


async def test_long_answers_are_cut_and_say_so(opened, make):
    async with opened(max_tokens=4) as (_, memory):
        kept = (await memory.remember(make.record(tokens=9))).episode
        assert (kept.tokens, kept.answer_tokens) == (4, 9)
        assert memory.states(kept.key).hidden.shape == (4, make.dim)


async def test_another_model_makes_it_stale_and_it_can_be_made_anew(opened, make):
    async with opened("text") as (_, memory):
        old = (await memory.remember(make.record(answer="Lyon"))).episode
        new = (await memory.remember(make.record(answer="Paris"))).episode
        changed = make.viewer(fingerprint="fp2")
        assert make.acting(memory, FRANCE, changed) == []
        stale = await memory.stale("m", "fp2")
        assert [one.key for one in stale] == [new.key, old.key]
        assert await memory.stale("m", "fp") == []
        told = []
        memory.on_gone = told.extend
        fresh = make.record(answer="encoded anew", space=make.space(32, "s2"), tokens=7)
        renewed = await memory.renew(
            new.key, fingerprint="fp2", hidden=fresh.hidden, token_ids=fresh.token_ids, space=fresh.space
        )
        assert told == [new.key]
        assert make.acting(memory, FRANCE, changed) == [renewed.key]
        np.testing.assert_array_equal(memory.states(renewed.key).token_ids, fresh.token_ids)
        assert (renewed.text, renewed.request_id, renewed.created_at) == (new.text, new.request_id, new.created_at)
        undone = await memory.undo(renewed.key)
        assert undone.episode.key == renewed.key
        assert undone.returned == (old.key,)


async def test_system_prompts_must_agree(opened, make):
    async with opened() as (_, memory):
        system = "You are a travel guide. Answer in one sentence, warmly and without lists."
        key = (await memory.remember(make.record(system=system))).episode.key
        assert make.acting(memory, FRANCE, system=system) == [key]
        assert make.acting(memory, FRANCE) == []
        assert make.acting(memory, FRANCE, system="Answer in JSON.") == []
        asked = make.vectors(FRANCE)
        with pytest.raises(ValueError, match="system"):
            memory.gate(memory.recall(make.viewer(), asked.static), Question(FRANCE, system), asked)


@pytest.mark.parametrize("storage", STORAGES)
async def test_export_is_text_where_it_is_kept(opened, make, storage):
    async with opened(storage) as (_, memory):
        given = make.record()
        kept = (await memory.remember(given)).episode
        lines = [json.loads(line) async for line in memory.export()]
        assert [line["key"] for line in lines] == [kept.key]
        if storage == "text":
            assert lines[0]["question"]["text"] == FRANCE
            assert lines[0]["answer"] == "Lyon"
        else:
            assert lines[0]["token_ids"] == given.token_ids.tolist()
            assert "answer" not in lines[0]
            assert FRANCE not in json.dumps(lines)
        assert [line async for line in memory.export(tenant="other")] == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"question": Question(" ")}, "question"),
        ({"hidden": np.zeros((5, 3), np.float32)}, "hidden"),
        ({"hidden": np.full((5, 24), np.nan, np.float32)}, "hidden"),
        ({"token_ids": np.zeros(4, np.int32)}, "token_ids"),
        ({"hidden": np.zeros((0, 24), np.float32)}, "hidden"),
        ({"question": Question(FRANCE, "Be brief.")}, "vectors.system"),
    ],
)
async def test_what_cannot_be_remembered_is_refused_by_name(opened, make, changes, named):
    async with opened() as (_, memory):
        with pytest.raises(InvalidRequest) as caught:
            await memory.remember(make.record(**changes))
        assert caught.value.param == named
        assert await memory.episodes() == []


async def test_what_has_begun_is_finished_when_the_caller_leaves(opened, make):
    async with opened() as (_, memory):
        task = asyncio.create_task(memory.remember(make.record()))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(make.acting(memory, FRANCE)) == len(await memory.episodes()) == 1


async def test_a_memory_that_is_not_open_says_so(make):
    with pytest.raises(StateError, match="not open"):
        EpisodeMemory(None, compiled=False).holds(make.viewer())
