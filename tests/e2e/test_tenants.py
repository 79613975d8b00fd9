"""Who may do what, and that what one tenant teaches stays with it."""

from __future__ import annotations

import pytest


def test_without_a_key_or_with_a_wrong_one_nothing_is_told(shared):
    for client in (shared.client(), shared.client("wrong")):
        refused = client.ask()
        assert refused.status == 401
        assert "choices" not in refused.body
        assert client.http.get("/v1/sona/stats").status_code == 401
        assert client.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("user", {"use"}), ("teacher", {"use", "teach"}), ("admin", {"admin"})],
)
def test_a_key_does_what_its_roles_say(shared, key, allowed):
    client = shared.client(key)
    statuses = {
        "use": client.ask(max_tokens=1).status,
        "teach": client.feedback(request_id="req-x", rating=1)[0],
        "admin": client.http.get("/v1/sona/stats").status_code,
    }
    for role, status in statuses.items():
        assert (status != 403) == (role in allowed), (role, status)


def test_what_one_tenant_teaches_never_reaches_another(shared, tenant):
    other = shared.client("key62")
    before, own = other.ask(), tenant.ask()
    for _ in range(8):
        tenant.teach(own, correction="the lazy dog")
    assert tenant.ask().text != own.text
    after = other.ask()
    assert (after.text, after.adapter) == (before.text, "none")
    stolen = other.ask(headers={"x-sona-adapt": tenant.ask().adapter})
    assert stolen.status == 404


def test_what_one_tenant_asks_is_not_told_to_another(shared, tenant):
    other, text = shared.client("key61"), "a question that one tenant alone has asked"
    for answer in [tenant.ask(text) for _ in range(3)]:
        tenant.teach(answer, rating=1)
    own = tenant.ask(text)
    assert own.headers["x-sona-pattern"] != "none"
    assert float(own.headers["x-sona-similarity"]) > 0.9
    foreign = other.ask(text)
    assert foreign.headers["x-sona-pattern"] == "none"
    assert "x-sona-similarity" not in foreign.headers
    listed = tenant.get("/v1/sona/patterns")["data"]
    assert max(one["cluster_size"] for one in listed if one["tenant"] == _name(tenant)) >= 4
    assert all(one["cluster_size"] <= 1 for one in listed if one["tenant"] == "t61")


def _name(client):
    return client.key.replace("key", "t")


def test_only_a_gateway_may_say_who_the_user_is(shared):
    gateway, teacher = shared.client("gateway"), shared.client("teacher")
    asked = gateway.ask(user="alice", max_tokens=2)
    verdict = {"request_id": asked.request_id, "rating": 0.5}
    assert gateway.feedback(**verdict, headers={"x-sona-user": "bob"})[0] == 404
    assert gateway.feedback(**verdict, headers={"x-sona-user": "alice"})[0] == 200
    unheard = teacher.ask(user="alice", headers={"x-sona-user": "alice"}, max_tokens=2)
    verdict["request_id"] = unheard.request_id
    assert gateway.feedback(**verdict, headers={"x-sona-user": "bob"})[0] == 200
