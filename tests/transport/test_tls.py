"""TLS with a certificate authority of the test's own."""

import asyncio
import ssl

import pytest
import trustme
import uvloop
from scripted_upstream import chunked, serving

from sona_stream.errors import UpstreamProtocolError, UpstreamUnreachable
from sona_stream.transport import Client, create_ssl_context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, str(path)


def server_context(ca, name="localhost"):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(context)
    return context


async def script(asked, wire):
    await wire.send(chunked(b"secret ", asked.body, end=asked.target != "/die"))
    return "close" if asked.target == "/die" else None


async def ask(client, url):
    async with client.request("POST", url, (), b"x" * 100_000) as response:
        return await response.read()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("verify", ["bundle", False])
def test_tls_exchange_and_reuse(authority, verify, factory):
    ca, path = authority

    async def run():
        async with (
            serving(script, ssl=server_context(ca)) as upstream,
            Client(verify=path if verify else False) as client,
        ):
            for _ in range(3):
                assert await ask(client, upstream.url) == b"secret " + b"x" * 100_000
            assert upstream.connections == 1
            with pytest.raises(UpstreamProtocolError):
                await ask(client, f"{upstream.url}/die")

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


@pytest.mark.parametrize(("name", "trusted"), [("localhost", False), ("else.where", True)])
async def test_a_certificate_that_does_not_prove_the_host_is_refused(authority, name, trusted):
    ca, path = authority
    async with (
        serving(script, ssl=server_context(ca, name)) as upstream,
        Client(verify=path if trusted else True) as client,
    ):
        with pytest.raises(UpstreamUnreachable, match=r"(?i)certificate"):
            await ask(client, upstream.url)


def test_an_unreadable_bundle_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"ssl_verify.*nowhere\.pem"):
        create_ssl_context(str(tmp_path / "nowhere.pem"))
