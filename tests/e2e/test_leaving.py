"""Clients that leave: the answer is given up in all three phases, and its place is free again."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from program import until

PLACES = 16  # of the local engine, `max_batch`
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "fox " * 600}], "max_tokens": 2000}


def _send(tenant, body) -> socket.socket:
    address = urlsplit(tenant.url)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {tenant.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    sock = socket.create_connection((address.hostname, address.port), timeout=10)
    sock.sendall(head.encode() + data)
    return sock


@contextlib.contextmanager
def _every_place_taken(tenant) -> Iterator[None]:
    """For seconds: whoever asks meanwhile has not had a first byte."""
    with tenant.http.stream("POST", "/v1/chat/completions", json={**LONG, "n": PLACES, "stream": True}) as answer:
        chunks = answer.iter_bytes()  # it is closed with its iterator
        next(chunks)
        yield


@pytest.mark.parametrize("phase", ["before_first_byte", "mid_stream", "non_stream"])
def test_a_client_that_leaves_frees_its_place(tenant, phase):
    counter = f'sona_upstream_cancelled_total{{phase="{phase}"}}'
    before = tenant.metric(counter)
    waits = phase == "before_first_byte"
    with _every_place_taken(tenant) if waits else contextlib.nullcontext():
        with _send(tenant, {**LONG, "stream": phase != "non_stream"}) as sock:
            if phase == "mid_stream":
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            else:
                until(lambda: tenant.metric("sona_in_flight_requests") == 1 + waits)
        until(lambda: tenant.metric("sona_in_flight_requests") == 0 + waits)
    until(lambda: tenant.metric("sona_in_flight_requests") == 0)
    assert tenant.metric(counter) == before + 1, "it was given up, not answered to its end"
    assert tenant.ask().status == 200


def test_an_answer_that_was_broken_off_can_still_be_judged(tenant):
    with tenant.http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
        next(response.iter_bytes())
    status, outcome = tenant.feedback(request_id=response.headers["x-sona-request-id"], rating=-1)
    assert status == 200, outcome
