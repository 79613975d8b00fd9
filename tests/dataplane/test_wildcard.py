"""`--upstream URL`: every name passes; and what the proxy answers by itself."""

import asyncio
import base64
import contextlib
import json

import httpx
import numpy as np
import pytest
from dataplane_scripts import OK, ask, body, questions, sends, two
from scripted_upstream import serving, sized

OWN = "sona/static-minilm-256"


async def get(url, path):
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url + path)


async def post(url, path, **fields):
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(url + path, json=fields, headers={"authorization": "Bearer sk-mine"})


async def test_the_alias_that_routes_goes_to_the_first_model_of_the_upstream(proxy):
    async with serving(sends(OK)) as upstream, proxy(upstream.url) as it:
        for _ in range(3):
            reply = await ask(it.url, body(False, model="sona/auto"))
            assert (reply.status, reply.headers["x-sona-model"]) == (200, "first")
        assert [one.json["model"] for one in questions(upstream)] == ["first"] * 3
        lists = [one for one in upstream.asked if one.method == "GET"]
        assert len(lists) <= 4  # probes and one question; not one a request


@pytest.mark.parametrize(("status", "hint"), [("404 Not Found", "404"), ("401 Unauthorized", "--upstream-key-env")])
async def test_without_a_list_the_alias_says_what_to_do(proxy, status, hint):
    async def script(asked, wire):
        await wire.send(sized(b"{}", status=status) if asked.method == "GET" else OK)

    async with serving(script) as upstream, proxy(upstream.url) as it:
        reply = await ask(it.url, body(False, model="sona/auto"))
        assert reply.status == 404
        assert "sona.routing.default_model" in reply.json()["error"]["message"]
        assert hint in reply.json()["error"]["message"]
        assert (await ask(it.url, body(False, model="anything"))).status == 200


async def test_with_its_upstream_away_the_alias_says_so_and_comes_back_with_it(proxy):
    async with contextlib.AsyncExitStack() as stack:
        async with serving(sends(OK)) as upstream:
            it = await stack.enter_async_context(proxy(upstream.url))
        reply = await ask(it.url, body(False, model="sona/auto"))
        assert (reply.status, reply.json()["error"]["code"]) == (503, "not_ready")
        assert upstream.url in reply.json()["error"]["message"]
        async with serving(sends(OK), port=int(upstream.url.rpartition(":")[2])):
            for _ in range(60):
                if (reply := await ask(it.url, body(False, model="sona/auto"))).status == 200:
                    break
                await asyncio.sleep(0.1)
        assert (reply.status, reply.headers["x-sona-model"]) == (200, "first")


async def test_the_upstreams_models_are_listed(proxy):
    async with serving(sends(OK)) as upstream, proxy(upstream.url) as it:
        listed = (await get(it.url, "/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["sona/auto", "first", "org/second", OWN]
        assert (await get(it.url, "/v1/models/org/second")).json()["id"] == "org/second"
        assert (await get(it.url, "/v1/models/third")).status_code == 404


async def test_embeddings_of_an_upstream_pass_as_they_are(proxy):
    sent = b'{"model":"embedder-9",  "input":[1, 2]}'
    async with serving(sends(sized(b'{"data": []}'))) as upstream, proxy(upstream.url) as it:
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.post(
                it.url + "/v1/embeddings", content=sent, headers={"authorization": "Bearer sk-mine"}
            )
        assert (reply.status_code, reply.content) == (200, b'{"data": []}')
        (asked,) = questions(upstream)
        assert (asked.target, asked.body) == ("/v1/embeddings", sent)
        assert asked.headers["authorization"] == "Bearer sk-mine"


async def test_own_embeddings(proxy):
    async with serving(sends(OK)) as upstream, proxy(two(upstream, upstream)) as it:
        texts = ["How do I sort a list in Python?", "Sorting lists in python", "The cat sat on the mat."]
        told = (await post(it.url, "/v1/embeddings", model=OWN, input=texts)).json()
        packed = (await post(it.url, "/v1/embeddings", model=OWN, input=texts, encoding_format="base64")).json()
        rows = np.array([entry["embedding"] for entry in told["data"]], np.float32)
        for row, entry in zip(rows, packed["data"], strict=True):
            assert np.array_equal(np.frombuffer(base64.b64decode(entry["embedding"]), "<f4"), row)
        assert rows.shape == (3, 256)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert rows[0] @ rows[1] > rows[0] @ rows[2]
        assert [entry["index"] for entry in told["data"]] == [0, 1, 2]
        assert (told["object"], told["model"], told["usage"]) == (
            "list",
            OWN,
            {"prompt_tokens": 0, "total_tokens": 0},
        )
        bare = (await post(it.url, "/v1/embeddings", model=OWN.removeprefix("sona/"), input=texts[0])).json()
        assert np.allclose(bare["data"][0]["embedding"], rows[0])
        assert not questions(upstream)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({}, "input"),
        ({"input": ["a", None]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 64}, "dimensions"),
    ],
)
async def test_own_embeddings_refuse_clearly(fields, param):
    from sona_stream.app.embeddings import embed
    from sona_stream.errors import InvalidRequest
    from sona_stream_adapters.embedders.static import create_embedder

    with pytest.raises(InvalidRequest) as caught:
        await embed(create_embedder({}), json.dumps({"model": OWN, **fields}).encode())
    assert caught.value.param == param
    assert param in str(caught.value)


async def test_what_backends_take_and_what_we_add_is_measured(proxy):
    async with serving(sends(OK)) as upstream, proxy(two(upstream, upstream)) as it:
        for _ in range(3):
            await ask(it.url, body(False, model="a"))
        labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "a"}
        value = it.application.registry.get_sample_value
        assert value("gen_ai_client_operation_duration_seconds_count", {**labels, "error_type": ""}) == 3
        assert value("gen_ai_client_operation_time_to_first_chunk_seconds_count", labels) == 3
        assert value("sona_overhead_seconds_count", labels) == 3
        assert 0 < value("sona_overhead_seconds_sum", labels) < 3
        text = (await get(it.url, "/metrics")).text
        assert "sona_overhead_seconds_bucket" in text
