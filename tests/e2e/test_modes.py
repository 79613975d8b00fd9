"""`sona.learning`, the gates, lost models: the assembled program behind ASGI, so that torch loads only once."""

from __future__ import annotations

import contextlib

import anyio
import httpx
import pytest
from program import QUICK

from sona_stream.app import Application
from sona_stream.config.settings import Deployment, Settings, SonaSettings
from sona_stream.config.strict import convert
from sona_stream.engine.learner import Learner
from sona_stream.errors import NotReady, StateError
from sona_stream.server import create_app


@pytest.fixture
def running(tiny_folder, tmp_path):
    @contextlib.asynccontextmanager
    async def run(*, models=(), **sona):
        folders = {"tiny": tiny_folder, **dict(models)}
        deployments = tuple(
            Deployment(model_name=name, provider="local", upstream_model=str(folder), params={"threads": 1})
            for name, folder in folders.items()
        )
        settings = Settings(models=deployments, sona=convert({**QUICK, **sona}, SonaSettings, "sona"))
        application = Application(settings, directory=tmp_path / "state")
        transport = httpx.ASGITransport(create_app(application))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await application.startup()
            try:
                while True:
                    with contextlib.suppress(NotReady):
                        await application.readiness()
                        break
                    await anyio.sleep(0.02)
                yield _Client(http)
            finally:
                await application.shutdown()

    return run


class _Client:
    def __init__(self, http):
        self.http = http

    async def ask(self, **headers):
        messages = [{"role": "user", "content": "the quick brown fox"}]
        body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 16}
        response = await self.http.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def teach(self, answer, **verdict):
        body = {"request_id": answer.headers["x-sona-request-id"], **verdict}
        response = await self.http.post("/v1/feedback?wait=1", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def stats(self):
        return (await self.http.get("/v1/sona/stats")).json()


async def test_off_keeps_feedback_and_learns_nothing(running, caplog):
    async with running(learning="off") as client:
        outcome = await client.teach(await client.ask(), rating=-1)
        assert (outcome["status"], outcome["reason"]) == ("skipped", "sona.learning is off")
        assert (await client.ask()).headers["x-sona-adapter"] == "none"
        stats = await client.stats()
        assert stats["engine"]["patterns_stored"] == 0
        assert (await client.http.get("/v1/sona/adapters")).json()["data"] == []
    assert "sona.learning is off" in caplog.text


async def test_observe_computes_versions_and_serves_none(running):
    async with running(learning="observe") as client:
        bare = await client.ask()
        outcome = await client.teach(bare, correction="the lazy dog")
        assert outcome["status"] == "accepted"
        assert "observed as tiny/default/*@1" in outcome["reason"]
        after = await client.ask()
        assert after.headers["x-sona-adapter"] == "none"
        assert after.json()["choices"] == bare.json()["choices"]
        (row,) = (await client.http.get("/v1/sona/adapters")).json()["data"]
        assert (row["version"], row["status"], row["served"]) == (1, "observed", False)


async def test_by_default_scores_move_routing_and_never_weights(running):
    async with running() as client:
        for _ in range(3):
            answer = await client.ask()
        await anyio.sleep(0.2)
        assert answer.headers["x-sona-adapter"] == "none"
        stats = await client.stats()
        assert stats["engine"]["trajectories_recorded"] == 3
        assert stats["learner"]["served"] == {}


async def test_auto_learns_from_its_own_scores(running):
    async with running(learning="auto") as client:
        with anyio.fail_after(20):
            while (await client.ask()).headers["x-sona-adapter"] == "none":
                pass


async def test_a_gate_holds_and_says_why(running):
    async with running(learner={"max_kl_to_base": 1e-9}) as client:
        outcome = await client.teach(await client.ask(), correction="the lazy dog")
        assert outcome["status"] == "gated"
        assert "mean_kl_to_base" in outcome["reason"]
        assert outcome["adapter"] is None
        assert (await client.ask()).headers["x-sona-adapter"] == "none"


async def test_what_the_model_forgot_is_encoded_again_from_what_was_kept(running, tiny_folder):
    async with running() as client:
        answer = await client.ask()
    async with running() as client:  # another process' memory, as it were
        assert (await client.teach(answer, rating=-1))["status"] == "published"


async def test_at_storage_none_what_the_model_forgot_is_gone(running):
    async with running(storage="none") as client:
        answer = await client.ask()
    async with running(storage="none") as client:
        body = {"request_id": answer.headers["x-sona-request-id"], "rating": -1}
        response = await client.http.post("/v1/feedback?wait=1", json=body)
        assert response.status_code == 410
        assert "sona.storage" in response.json()["error"]["message"]


async def test_one_lost_model_of_two_costs_only_itself(running, tmp_path):
    async with running(models={"lost": tmp_path / "nothing"}) as client:
        assert (await client.teach(await client.ask(), rating=-1))["status"] == "published"
        body = {"model": "lost", "messages": [{"role": "user", "content": "fox"}]}
        response = await client.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 503
        assert "no model at" in response.json()["error"]["message"]
        assert (await client.stats())["backends"]["tiny"] == ["ready"]


async def test_when_the_learner_cannot_start_it_is_told(running, monkeypatch):
    async def broken(self):
        raise StateError("the adapters cannot be read")

    monkeypatch.setattr(Learner, "__aenter__", broken)
    with pytest.raises(StateError, match="cannot be read"):
        async with running():
            pass
