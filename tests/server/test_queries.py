"""Query strings of the admin routes: a filter that names nothing is refused, not left out."""

from __future__ import annotations

import pytest
from server_clients import ask


@pytest.fixture
def seen(services):
    """What the services were asked for, over all tenants."""
    asked = []

    async def episodes(*given):
        asked.append(given)
        return []

    async def export_episodes(*given):
        asked.append(given)
        return b"", None

    services.episodes, services.export_episodes = episodes, export_episodes
    return asked


@pytest.mark.parametrize("nothing", ["", "=", "=%20", "=acme&{}="])
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/sona/memory", "tenant"),
        ("/v1/sona/memory", "person"),
        ("/v1/sona/memory/export", "tenant"),
        ("/v1/sona/adapters", "tenant"),
    ],
)
async def test_an_empty_filter_is_refused_by_name(app, seen, path, name, nothing):
    reply = await ask(app, "GET", f"{path}?{name}{nothing.format(name)}")
    assert reply.status == 400
    error = reply.json()["error"]
    assert (error["param"], error["message"]) == (name, f"{name} is empty; leave it out, or say which")
    assert seen == []


@pytest.mark.parametrize("path", ["/v1/sona/memory", "/v1/sona/memory/export", "/v1/sona/adapters"])
async def test_one_that_is_misspelt_too(app, seen, path):
    reply = await ask(app, "GET", f"{path}?tenat=acme")
    assert (reply.status, reply.json()["error"]["param"], seen) == (400, "tenat", [])


async def test_what_is_named_is_asked_for(app, seen):
    assert (await ask(app, "GET", "/v1/sona/memory?tenant=a%26b&person=user:ann&limit=3")).status == 200
    assert (await ask(app, "GET", "/v1/sona/memory/export?tenant=acme")).status == 200
    assert (await ask(app, "GET", "/v1/sona/memory/export")).status == 200
    assert seen == [("a&b", "user:ann", None, 3), ("acme", 0, 500), (None, 0, 500)]


@pytest.mark.parametrize("name", ["key", "version"])
async def test_a_version_needs_its_key_and_number(app, name):
    query = "key=&version=1" if name == "key" else "key=m1/acme/*&version="
    reply = await ask(app, "GET", f"/v1/sona/adapters/show?{query}")
    assert (reply.status, reply.json()["error"]["param"]) == (400, name)
