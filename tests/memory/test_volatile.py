"""Episodes in memory only leave as those of a state folder do, and in as little time."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from sona_stream.config.settings import SonaSettings
from sona_stream.engine.memory.volatile import VolatileEpisodes
from sona_stream.episodes import Episode, NewEpisode
from sona_stream.lora import HiddenSpace
from sona_stream.store import create_store

SPACE = HiddenSpace(mean=np.zeros(4, np.float32), spread=np.ones(4, np.float32), version="v1")


def new(name, user="alice", tenant="acme"):
    episode = Episode(
        key="",
        number=0,
        model="m",
        fingerprint="fp",
        scope="person",
        tenant=tenant,
        user=user,
        key_id="k1",
        request_id=name,
        feedback_id=name,
        kind="correction",
        tokens=1,
        answer_tokens=1,
        nbytes=0,
        created_at=1.0,
        stored_at=1.0,
    )
    return NewEpisode(episode=episode, static=bytes(256), standing=0.0, head=b"h", body=b"b", space=SPACE)


class Both:
    """A store in memory and one on disk, told the same; episodes by their request's name."""

    def __init__(self, *stores):
        self.stores, self.numbers = stores, [{} for _ in stores]

    async def put(self, name, user, tenant, supersede, replace=None):
        for store, numbers in zip(self.stores, self.numbers, strict=True):
            given = {"supersede": [numbers[one] for one in supersede], "replace": numbers.get(replace)}
            numbers[name] = (await store.put(new(name, user, tenant), **given)).number

    async def move(self, name, supersede):
        for store, numbers in zip(self.stores, self.numbers, strict=True):
            others = [numbers[one] for one in supersede]
            await store.move(numbers[name], scope="tenant", by="boss", supersede=others)

    async def drop(self, names, along):
        said = []
        for store, numbers in zip(self.stores, self.numbers, strict=True):
            named = {number: name for name, number in numbers.items()}
            gone, returned = await store.drop([numbers[name] for name in names], along=along)
            said.append(({named[one] for one in gone}, {named[one.number] for one in returned}))
        assert said[0] == said[1]
        return said[0]

    async def standing(self):
        """Name -> who stands for it."""
        found = []
        for store, numbers in zip(self.stores, self.numbers, strict=True):
            named = {number: name for name, number in numbers.items()} | {None: None}
            found.append({named[e.number]: named[e.superseded_by] for e in await store.entries()})
        assert found[0] == found[1]
        return found[0]


@pytest.mark.parametrize("seed", range(12))
async def test_both_stores_let_go_of_the_same(tmp_path, seed):
    rng = np.random.default_rng(seed)
    async with create_store(SonaSettings(), directory=tmp_path) as store:
        both, whose = Both(VolatileEpisodes(), store.episode_store), {}
        for step in range(25):
            before = await both.standing()
            current = [name for name, by in before.items() if by is None]
            some = [name for name in current if rng.random() < 0.4]
            kind = rng.choice(["put", "put", "put", "move", "replace", "drop"])
            if kind == "put" or not before:
                whose[f"e{step}"] = str(rng.choice(["alice", "bob"])), str(rng.choice(["acme", "other"]))
                await both.put(f"e{step}", *whose[f"e{step}"], some)
            elif kind == "replace":
                old = str(rng.choice(list(before)))
                whose[f"e{step}"] = whose[old]
                await both.put(f"e{step}", *whose[old], [], replace=old)
            elif kind == "move" and current:
                chosen = str(rng.choice(current))
                await both.move(chosen, [name for name in some if name != chosen])
            else:
                doomed = [name for name in before if rng.random() < 0.3]
                along = str(rng.choice(["all", "own", "none"]))
                gone, returned = await both.drop(doomed, along)
                after = await both.standing()
                assert gone == expected(before, whose, doomed, along)
                assert returned == {name for name in after if after[name] is None and before[name] is not None}
                assert set(after) == set(before) - gone
                for name, by in after.items():
                    heir = before[name]
                    while heir in gone:
                        heir = before[heir]
                    assert by == heir


def expected(before, whose, doomed, along):
    gone, more = set(doomed), set(doomed)
    while more and along != "none":
        behind = {name: by for name, by in before.items() if by in more}
        more = {name for name, by in behind.items() if along == "all" or whose[name] == whose[by]} - gone
        gone |= more
    return gone


@pytest.mark.parametrize("along", ["all", "own", "none"])
@pytest.mark.parametrize("one_after_another", [True, False])
async def test_many_leave_in_little_time(along, one_after_another):
    kept, last = VolatileEpisodes(), []
    template = new("x")
    for number in range(8000):
        entry = await kept.put(template, supersede=last)
        last = [entry.number] if one_after_another or number == 0 else []
    episodes = [entry.number for entry in await kept.entries()]
    began = time.process_time()
    dropped = await kept.drop(episodes, along=along)
    assert time.process_time() - began < 1.0
    assert (dropped.numbers, dropped.returned, await kept.count()) == (episodes, [], 0)
    assert not kept._stands_for
    again = await kept.put(dataclasses.replace(template))
    assert (await kept.drop([again.number], along=along)).numbers == [again.number]
