from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from sona_stream.errors import (
    ConfigError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sona_stream_adapters.embedders.openai import HttpEmbedder, create_embedder

Answer = Callable[[httpx.Request], httpx.Response]


def embedder_on(answer: Answer, **more: object) -> HttpEmbedder:
    client = httpx.AsyncClient(base_url="http://embed.test/v1/", transport=httpx.MockTransport(answer))
    return HttpEmbedder(client, model="m", dim=2, **{"batch_size": 2, **more})


def vectors(request: httpx.Request) -> httpx.Response:
    """Each text's length and 1, in reversed order: ``index`` counts."""
    texts = json.loads(request.content)["input"]
    data = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(texts)]
    return httpx.Response(200, json={"data": data[::-1]})


async def test_rows_are_unit_in_order_and_empty_texts_stay_at_home() -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return vectors(request)

    embedder = embedder_on(answer)
    rows = await embedder.embed(["a", "", "bbb", "cc", " "])
    await embedder.aclose()
    assert [body["input"] for body in sent] == [["a", "bbb"], ["cc"]]
    assert all(body["model"] == "m" and "dimensions" not in body for body in sent)
    expected = [[1, 1], [0, 0], [3, 1], [2, 1], [0, 0]]
    for row, raw in zip(rows, expected, strict=True):
        norm = float(np.hypot(*raw))
        np.testing.assert_allclose(row, np.array(raw) / (norm or 1.0), rtol=1e-6)


async def test_lone_surrogates_and_long_texts_are_sent_well_formed() -> None:
    embedder = embedder_on(vectors, send_dimensions=True)
    rows = await embedder.embed(["\ud800 hi", "x" * 1_000_000])
    await embedder.aclose()
    assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"data": [{"index": 0, "embedding": [1.0, 2.0, 3.0]}]}, r"shape \(3,\)"),
        ({"data": []}, "not a list of 1"),
        ({"data": [{"index": 0, "embedding": "AAAA"}]}, "not a list of 1"),
        ({"data": [{"index": 0, "embedding": 3.0}]}, r"shape \(\)"),
        ({"error": "no"}, "not a list of 1"),
        ([], "not a list of 1"),
    ],
)
async def test_answers_of_the_wrong_shape(body: object, message: str) -> None:
    embedder = embedder_on(lambda request: httpx.Response(200, json=body))
    with pytest.raises(UpstreamProtocolError, match=message):
        await embedder.embed(["a"])
    await embedder.aclose()


async def test_infinite_values_and_no_json() -> None:
    for content in (b'{"data": [{"index": 0, "embedding": [1e999, 1]}]}', b"<html>"):
        embedder = embedder_on(lambda request, content=content: httpx.Response(200, content=content))
        with pytest.raises(UpstreamProtocolError):
            await embedder.embed(["a"])
        await embedder.aclose()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(httpx.ReadTimeout("slow"), UpstreamTimeout), (httpx.ConnectError("refused"), UpstreamUnreachable)],
)
async def test_transport_failures_are_mapped_and_not_retried(
    raised: Exception, expected: type[UpstreamError]
) -> None:
    calls = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise raised

    embedder = embedder_on(answer)
    with pytest.raises(expected):
        await embedder.embed(["a"])
    await embedder.aclose()
    assert calls == 1


async def test_a_status_is_an_upstream_error() -> None:
    embedder = embedder_on(lambda request: httpx.Response(429, content=b"slow down"))
    with pytest.raises(UpstreamError, match="429") as caught:
        await embedder.embed(["a"])
    await embedder.aclose()
    assert caught.value.body == b"slow down"


async def test_options_make_the_client() -> None:
    embedder = create_embedder({"api_base": "http://h/v1/", "model": "m", "dim": 8, "api_key": "k", "timeout": 3})
    assert (embedder.name, embedder.dim) == ("openai-m-8", 8)
    await embedder.aclose()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "api_base"),
        ({"api_base": "http://h/v1"}, "model"),
        ({"api_base": "http://h/v1", "model": "m"}, "dim"),
        ({"api_base": "http://h/v1", "model": "m", "dim": 0}, "dim"),
        ({"api_base": "http://h/v1", "model": "m", "dim": True}, "dim"),
        ({"api_base": "http://h/v1", "model": "m", "dim": 2, "timeout": -1}, "timeout"),
        ({"api_base": "http://h/v1", "model": "m", "dim": 2, "retries": 1}, "retries"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=f"embedder_options.{field}"):
        create_embedder(options)
