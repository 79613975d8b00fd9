"""The decoder against a line-by-line reading of the standard, under every cut."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona_stream.wire import SseDecoder, encode_event


def by_the_standard(stream: bytes) -> list[bytes]:
    """The event-stream algorithm of the HTML standard, on the whole stream at once."""
    text = stream.removeprefix(b"\xef\xbb\xbf")
    lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    events, data = [], None
    for line in lines:
        if not line:
            if data is not None:
                events.append(data)
            data = None
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            data = value if data is None else data + b"\n" + value
    return events


LINES = st.sampled_from(
    [
        b'data: {"a": "\xe4\xbd\xa0"}',
        b"data:x",
        b"data:  two spaces",
        b"data",
        b"data:",
        b": ping",
        b":",
        b"event: error",
        b"id: 7",
        b"retry: 10",
        b"unknown",
        b"data : no",
        b"datas: no",
        b"",
        b"",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"]))).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


def cut(stream, spots):
    edges = sorted({min(spot, len(stream)) for spot in spots} | {0, len(stream)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(stream=STREAMS, spots=st.lists(st.integers(0, 300), max_size=20), bom=st.booleans())
def test_any_cut_gives_the_standards_events_and_the_same_bytes(stream, spots, bom):
    stream = (b"\xef\xbb\xbf" if bom else b"") + stream
    decoder, raw, events = SseDecoder(), b"", []
    for chunk in cut(stream, spots):
        aligned, found = decoder.take(chunk)
        raw, events = raw + aligned, events + found
    tail, last = decoder.finish()
    assert raw + tail == stream
    assert events == by_the_standard(stream)
    # What never got its blank line is no event by the standard; it is handed out apart.
    assert events + last in (
        by_the_standard(stream + b"\n\n"),
        by_the_standard(stream.removesuffix(b"\r") + b"\n\n"),
    )


@given(stream=STREAMS)
def test_one_byte_at_a_time(stream):
    decoder = SseDecoder()
    events = [event for i in range(len(stream)) for event in decoder.feed(stream[i : i + 1])]
    assert events == by_the_standard(stream)


@given(stream=STREAMS, spots=st.lists(st.integers(0, 300), max_size=20))
def test_what_is_handed_out_ends_at_a_boundary(stream, spots):
    decoder, raw = SseDecoder(), b""
    for chunk in cut(stream, spots):
        raw += decoder.take(chunk)[0]
        with_comment = raw + b": ping\n\n" + encode_event(b"last")
        assert by_the_standard(with_comment) == [*by_the_standard(raw), b"last"]


@given(st.text().map(str.encode))
def test_encoding_is_undone_by_decoding(data):
    expected = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert SseDecoder().feed(encode_event(data)) == [expected]


def test_json_is_one_line():
    data = json.dumps({"text": "a\nb\r\u2028"}).encode()
    assert encode_event(data) == b"data: " + data + b"\n\n"


def test_an_endless_event_is_passed_on_and_bounded():
    decoder, out = SseDecoder(max_event_bytes=1000), b""
    chunk = b"data: " + b"x" * 94
    for _ in range(50):
        out += decoder.take(chunk)[0]
        assert len(decoder.finish()[0] if decoder.overflowed else b"") == 0
    assert decoder.overflowed
    assert out == chunk * 50
    assert decoder.feed(b"data: y\n\n") == []


@pytest.mark.parametrize("size", [1 << 20])
def test_a_large_event_in_small_pieces_costs_linear_time(size):
    decoder = SseDecoder(max_event_bytes=2 * size)
    piece = b"x" * 256
    assert decoder.feed(b"data: ") == []
    for _ in range(size // 256):
        assert decoder.feed(piece) == []
    (event,) = decoder.feed(b"\n\n")
    assert len(event) == size
