"""Upstreams that need httpx: behind a proxy, asking for a client certificate; and HTTP/2 that is not installed."""

import importlib.util
import json
import ssl

import pytest
import trustme
from scripted_upstream import chunked, serving, sized

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import ConfigError, UpstreamUnreachable
from sona_stream.events import Delta, Finish, Request
from sona_stream_adapters.openai import create_backend

EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
STREAM = [EVENT, b"data: [DONE]\n\n"]


def deployment(url, **fields):
    return Deployment(model_name="pub", provider="openai", upstream_model="m", api_base=url, **fields)


async def script(asked, wire):
    if asked.method == "GET":
        await wire.send(sized(b"{}"))
    else:
        await wire.send(chunked(*STREAM, headers=("content-type: text/event-stream",)))


async def raw(backend):
    request = Request(id="r", endpoint="chat.completions", model="pub", body=json.dumps({"model": "m"}).encode())
    async with backend(request) as events:
        got = [one async for one in events]
    assert isinstance(got[-1], Finish)
    return b"".join(one.raw for one in got if isinstance(one, Delta))


async def test_a_proxy_is_used_for_everything():
    async with (
        serving(script) as proxy,
        create_backend(deployment("http://inside.example/v1", proxy=proxy.url), SonaSettings()) as backend,
    ):
        assert await raw(backend) == b"".join(STREAM)
        await backend.probe()
        assert [one.target for one in proxy.asked] == [
            "http://inside.example/v1/chat/completions",
            "http://inside.example/v1/models",
        ]


async def test_a_client_certificate_is_shown(tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine = ca.issue_cert("client@example.org")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # so that a refusal comes within the handshake
    trust = {"ssl_verify": str(tmp_path / "ca.pem")}
    async with serving(script, ssl=context) as upstream:
        for cert in (str(tmp_path / "both.pem"), (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))):
            async with create_backend(
                deployment(upstream.url, client_cert=cert, **trust), SonaSettings()
            ) as backend:
                assert await raw(backend) == b"".join(STREAM)
        async with create_backend(deployment(upstream.url, **trust), SonaSettings()) as backend:
            with pytest.raises(UpstreamUnreachable):
                await raw(backend)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization

    mine = trustme.CA().issue_cert("client@example.org")
    key = serialization.load_pem_private_key(mine.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    (tmp_path / "both.pem").write_bytes(locked + mine.cert_chain_pems[0].bytes())
    with pytest.raises(ConfigError, match="client_cert cannot be read"):
        create_backend(deployment("https://a", client_cert=str(tmp_path / "both.pem")), SonaSettings())


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_names_what_is_missing(monkeypatch, scheme):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "socksio" else found(name))
    with pytest.raises(ConfigError, match=r"proxy.* needs the package socksio; .*httpx\[socks\]") as caught:
        create_backend(deployment("http://a", proxy=f"{scheme}://me:word@h:1080"), SonaSettings())
    assert "word" not in str(caught.value)


async def test_an_empty_proxy_is_none():
    async with (
        serving(script) as upstream,
        create_backend(deployment(upstream.url, proxy=""), SonaSettings()) as backend,
    ):
        assert await raw(backend) == b"".join(STREAM)
        await backend.probe()


def test_http2_names_what_is_missing():
    if importlib.util.find_spec("h2") is not None:
        pytest.skip("h2 is installed")
    with pytest.raises(ConfigError, match="http2 needs the package h2"):
        create_backend(deployment("http://a", http2=True), SonaSettings())
