"""`/v1/embeddings` over several deployments of one model."""

import asyncio
import json

import pytest
from dataplane_scripts import ask, questions, sends
from scripted_upstream import chunked, serving, sized

from sona_stream.config.settings import Deployment, RoutingSettings, Settings, SonaSettings

GOOD = sized(b'{"data": ["good"]}')
BODY = json.dumps({"model": "e", "input": "x"}).encode()
SECRET = b'{"error": {"message": "Incorrect API key provided: sk-ours"}}'


def settings(*upstreams, names="ee", **routing):
    entries = tuple(
        Deployment(
            model_name=name, provider="openai", upstream_model="up", api_base=one.url, api_key="sk-ours", id=id
        )
        for one, name, id in zip(upstreams, names, "12", strict=True)
    )
    sona = SonaSettings(storage="none", learning="off", routing=RoutingSettings(**routing))
    return Settings(models=entries, sona=sona)


def refusing(status, body=b"{}"):
    return sends(sized(body, status=f"{status} X"))


@pytest.mark.parametrize("bad", [refusing(503), refusing(429), refusing(401, SECRET), sends(then="close")])
async def test_another_deployment_steps_in_and_the_bad_one_is_left_alone(proxy, bad):
    async with serving(bad) as first, serving(sends(GOOD)) as second, proxy(settings(first, second)) as it:
        for _ in range(6):
            reply = await ask(it.url, BODY, path="/v1/embeddings")
            assert (reply.status, reply.body) == (200, b'{"data": ["good"]}')
            assert reply.headers["x-sona-model"] == "e"
        assert len(questions(first)) == 1  # within its cool-down it is asked last
        assert len(questions(second)) == 6


PART = b'{"data": ["go'


@pytest.mark.parametrize(
    "died",
    [
        sends(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + PART, then="close"),
        sends(chunked(PART, end=False), then="close"),
        sends(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", then="close"),
    ],
)
async def test_another_deployment_steps_in_for_one_that_dies_in_mid_body(proxy, died):
    async with serving(died) as first, serving(sends(GOOD)) as second, proxy(settings(first, second)) as it:
        for _ in range(3):
            reply = await ask(it.url, BODY, path="/v1/embeddings")
            assert (reply.status, reply.body) == (200, b'{"data": ["good"]}')
        assert [len(questions(one)) for one in (first, second)] == [1, 3]


async def test_good_deployments_are_taken_in_turn(proxy):
    async with serving(sends(GOOD)) as first, serving(sends(GOOD)) as second, proxy(settings(first, second)) as it:
        await asyncio.gather(*(ask(it.url, BODY, path="/v1/embeddings") for _ in range(6)))
        assert [len(questions(one)) for one in (first, second)] == [3, 3]


async def test_the_clients_own_mistake_is_told_at_once_as_the_upstream_says_it(proxy):
    said = b'{"error": {"message": "input is too long"}}'
    async with (
        serving(refusing(400, said)) as first,
        serving(sends(GOOD)) as second,
        proxy(settings(first, second)) as it,
    ):
        reply = await ask(it.url, BODY, path="/v1/embeddings")
        assert (reply.status, reply.body) == (400, said)
        assert len(questions(second)) == 0


async def test_the_refusal_of_our_own_key_is_not_told_as_one_of_the_clients(proxy):
    async with (
        serving(refusing(401, SECRET)) as first,
        serving(refusing(401, SECRET)) as second,
        proxy(settings(first, second)) as it,
    ):
        reply = await ask(it.url, BODY, path="/v1/embeddings")
        assert reply.status == 502
        assert b"sk-ours" not in reply.body
        assert [len(questions(one)) for one in (first, second)] == [1, 1]


async def test_another_model_never_steps_in(proxy):
    async with (
        serving(refusing(503)) as first,
        serving(sends(GOOD)) as second,
        proxy(settings(first, second, names="eo", fallbacks={"e": ("o",)})) as it,
    ):
        assert (await ask(it.url, BODY, path="/v1/embeddings")).status == 503
        assert len(questions(second)) == 0
