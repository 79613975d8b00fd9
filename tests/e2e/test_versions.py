"""Adapter versions as a client and an administrator meet them."""

from __future__ import annotations

import re

import pytest
from program import until


@pytest.fixture
def taught(tenant):
    """A tenant with at least three versions, the last of which says something else than the bare model."""
    bare = tenant.ask()
    said = [bare.text]
    while len(said) < 4 or said[-1] == bare.text:
        tenant.teach(bare, correction="the lazy dog")
        said.append(tenant.ask().text)
        assert len(said) < 20
    return tenant, bare, said


def test_off_is_the_bare_model_byte_for_byte(taught):
    tenant, bare, said = taught
    assert said[-1] != bare.text
    off = tenant.ask(headers={"x-sona-adapt": "off"})
    assert off.adapter == "none"
    assert off.text == bare.text
    first, adapted, again = (_streamed(tenant, way) for way in ("off", "on", "off"))
    assert first == again != adapted


def _streamed(tenant, way):
    """The stream's bytes without what differs from request to request."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the quick brown fox"}], "stream": True}
    response = tenant.http.post(
        "/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 16}, headers={"x-sona-adapt": way}
    )
    name, created = response.headers["x-sona-request-id"].encode(), rb'"created":\d+'
    return re.sub(created, b"", response.content.replace(name, b""))


def test_an_older_version_can_be_pinned(taught):
    tenant, _, said = taught
    newest = tenant.ask()
    key = newest.adapter.rpartition("@")[0]
    for version in range(1, newest.version + 1):
        pinned = tenant.ask(headers={"x-sona-adapt": f"{key}@{version}"})
        assert pinned.adapter == f"{key}@{version}"
        assert pinned.text == said[version]
    assert tenant.ask().adapter == newest.adapter


@pytest.mark.parametrize(("pin", "status"), [("@999", 404), ("@x", 400), ("", 400)])
def test_a_version_that_is_not_there_cannot_be_pinned(taught, pin, status):
    tenant, *_ = taught
    key = tenant.ask().adapter.rpartition("@")[0]
    refused = tenant.ask(headers={"x-sona-adapt": f"{key}{pin}"})
    assert refused.status == status, refused.body


def test_rollback_serves_the_old_bytes_and_zero_the_bare_model(taught):
    tenant, bare, said = taught
    key = tenant.ask().adapter.rpartition("@")[0]
    for version, text in ((2, said[2]), (0, bare.text)):
        response = tenant.http.post("/v1/sona/adapters/rollback", json={"key": key, "version": version})
        assert response.status_code == 200, response.text
        answer = tenant.ask()
        assert answer.version == version
        assert answer.text == text
    rows = {row["version"]: row for row in tenant.get("/v1/sona/adapters")["data"] if row["key"] == key}
    assert len(rows) == len(said) - 1
    assert not any(row["served"] for row in rows.values())
    assert tenant.teach(tenant.ask(), rating=-1)["adapter"] == f"{key}@{len(said)}"


def test_rollback_of_what_is_not_there_is_not_found(tenant):
    for key, version in (("tiny/nobody/*", 1), ("nonsense", 1), ("tiny/t1/*", 999)):
        response = tenant.http.post("/v1/sona/adapters/rollback", json={"key": key, "version": version})
        assert response.status_code == 404, response.text


def test_frozen_nothing_is_published_and_thawed_it_is_learned(tenant):
    answer = tenant.ask()
    assert tenant.http.post("/v1/sona/freeze").json() == {"frozen": True}
    try:
        outcome = tenant.teach(answer, correction="the lazy dog")
        assert outcome["status"] == "accepted"
        assert "frozen" in outcome["reason"]
        assert tenant.ask().adapter == "none"
    finally:
        assert tenant.http.post("/v1/sona/thaw").json() == {"frozen": False}
    until(lambda: tenant.ask(max_tokens=1).version == 1)
