"""uvicorn's HTTP protocol with a limit that it lacks: heads and trailers come before anybody's key is looked at."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedProtocol"]

MAX_HEAD_BYTES = 64 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection that sends more than `MAX_HEAD_BYTES` without one byte of body."""

    _barren = 0
    """Bytes fed since the last byte of body, or since the request began."""

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._barren += len(data)
        super().data_received(data)
        if self._barren > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers.")

    def on_message_begin(self) -> None:
        """Of httptools."""
        self._barren = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        self._barren = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Of httptools."""
        self._barren = 0
        super().on_message_complete()
