"""Who is asked for: a name that is nobody's is refused, because a store would take it for everybody."""

from __future__ import annotations

import pytest

from sona_stream.errors import InvalidRequest


@pytest.mark.parametrize("storage", ["none", "features"])
@pytest.mark.parametrize("person", ["", "carol", "alice", "User:alice"])
async def test_whom_nobody_is_called_is_refused_and_nobody_else_forgotten(opened, make, storage, person):
    async with opened(storage) as (_, memory):
        for user in ("alice", "bob"):
            await memory.remember(make.record(user=user))
        for ask in (memory.forget, memory.episodes):
            with pytest.raises(InvalidRequest, match="key:ID or user:NAME") as refused:
                await ask(tenant="acme", person=person)
            assert refused.value.param == "person"
        assert len(await memory.episodes(tenant="acme")) == 2
        assert len(await memory.forget(tenant="acme", person="user:alice")) == 1
        assert [one.person for one in await memory.episodes(tenant="acme")] == ["user:bob"]
