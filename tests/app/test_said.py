"""What people said where no store keeps it: bounded, and nobody's is lost to another's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sona_stream.app import said as room
from sona_stream.app.said import Said
from sona_stream.events import Feedback, Principal


async def nothing(feedback_id):
    return None


@pytest.fixture
def said():
    return Said(SimpleNamespace(outcome=nothing), names=False)


def hear(said, id, user, tenant="acme"):
    said.hear(
        Feedback(id=id, request_id=f"r-{id}", tenant=tenant, key_id="k", user=user, kind="rating", quality=1.0)
    )


async def known(said, user, tenant="acme"):
    return [one.id async for one, _ in said.by(Principal(tenant=tenant, user=user, key_id="k"))]


async def test_another_tenant_s_flood_leaves_everybody_else_s(said):
    hear(said, "hers", "alice")
    hear(said, "his", "bob")
    for number in range(5000):
        hear(said, f"f{number}", f"user{number % 3000}", "other")
        hear(said, f"g{number}", None, "other")
    assert await known(said, "alice") == ["hers"]
    assert await known(said, "bob") == ["his"]
    assert (await known(said, None, "other"))[0] == "g4999"
    assert await known(said, "user2500", "other") == []
    assert await known(said, "user1999", "other") == ["f4999"]


async def test_of_one_person_the_newest_are_known(said):
    hear(said, "his", "bob")
    for number in range(1000):
        hear(said, f"h{number}", "alice")
    assert await known(said, "alice") == [f"h{number}" for number in range(999, 999 - room._HEARD, -1)]
    assert await known(said, "bob") == ["his"]


async def test_of_many_people_those_who_spoke_last_are_known(said):
    for number in range(room._PEOPLE + 5):
        hear(said, f"h{number}", f"user{number}")
        hear(said, f"again{number}", "user0")
    assert (await known(said, "user0"))[0] == f"again{room._PEOPLE + 4}"
    assert [await known(said, f"user{number}") for number in (5, 6)] == [[], ["h6"]]
    assert sum(map(len, said._heard.values())) == said._people == room._PEOPLE
