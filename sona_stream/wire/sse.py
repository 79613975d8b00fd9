"""Server-sent events, sans-IO (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Works on bytes, so that a UTF-8 character cut between two reads is whole again before anybody decodes it. Of the
fields only ``data`` is used; ``event``, ``id``, ``retry`` and comments are recognised and skipped.
"""

from __future__ import annotations

import re

__all__ = ["DONE", "DONE_DATA", "PING", "SseDecoder", "encode_event"]

DONE_DATA = b"[DONE]"
DONE = b"data: [DONE]\n\n"
"""OpenAI's end-of-stream event, encoded."""
PING = b": ping\n\n"
"""A comment that keeps a connection alive; put it between events only."""

MAX_EVENT_BYTES = 4 << 20
_LINE_END = rb"(?:\r\n|\r(?!\n)|\n)"
_BOUNDARY = re.compile(_LINE_END + _LINE_END)
_BOM = b"\xef\xbb\xbf"


def encode_event(data: bytes) -> bytes:
    """One event; line breaks in ``data`` become several ``data:`` lines."""
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    return b"data: " + data + b"\n\n"


class SseDecoder:
    """Cuts a byte stream into events. Accepts LF, CRLF and CR, any cut, and ``data:`` without a space.

    Bytes of an event that is not complete are held, at most ``max_event_bytes`` of them: past that the decoder
    gives up on events (`overflowed`) and `take` hands everything through.
    """

    __slots__ = ("_held", "_started", "max_event_bytes", "overflowed")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self.overflowed = False
        self._held = bytearray()
        self._started = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that ``chunk`` completes."""
        return self.take(chunk)[1]

    def take(self, chunk: bytes) -> tuple[bytes, list[bytes]]:
        """(bytes up to the last event boundary, verbatim and not yet given; data of the events in them)."""
        if self.overflowed:
            return chunk, []
        held = self._held
        if not held and chunk.endswith(b"\n\n") and b"\r" not in chunk:
            if chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2:
                self._started = True
                return chunk, [chunk[6:-2]]  # nearly always: one event, one line, whole
            return chunk, self._events(chunk)
        # Only the new bytes, and up to three before them, can hold a boundary: cost stays linear.
        seen = max(0, len(held) - 3)
        held += chunk
        cut = _last_boundary(held, seen)
        if not cut:
            if len(held) <= self.max_event_bytes:
                return b"", []
            self.overflowed = True
            return self._flush(), []
        whole = bytes(held[:cut])
        del held[:cut]
        return whole, self._lines(whole)

    def finish(self) -> tuple[bytes, list[bytes]]:
        """What is left when the stream ends without a last blank line: (held bytes, data of the event in them)."""
        rest = self._flush()
        return rest, self._lines(rest) if rest and not self.overflowed else []

    def _flush(self) -> bytes:
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _lines(self, whole: bytes) -> list[bytes]:
        if b"\r" in whole:
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return self._events(whole)

    def _events(self, whole: bytes) -> list[bytes]:
        if not self._started:
            self._started = True
            whole = whole.removeprefix(_BOM)
        events = []
        for block in whole.split(b"\n\n"):
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
            elif block and (data := _data(block)) is not None:
                events.append(data)
        return events


def _last_boundary(buffer: bytearray, start: int) -> int:
    """End of the last pair of line ends at or after ``start``; 0 when there is none."""
    if buffer.find(b"\r", start) < 0:
        return buffer.rfind(b"\n\n", start) + 2 if buffer.find(b"\n\n", start) >= 0 else 0
    end = 0
    for match in _BOUNDARY.finditer(buffer, start):
        end = match.end()
    return end


def _data(block: bytes) -> bytes | None:
    lines = []
    for line in block.split(b"\n"):
        name, colon, value = line.partition(b":")
        if name == b"data":
            lines.append(value[1:] if colon and value.startswith(b" ") else value)
    return b"\n".join(lines) if lines else None
