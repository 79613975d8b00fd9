"""A real HTTP/1.1 upstream on asyncio streams whose answers are scripts; independent of the product's parser."""

import asyncio
import contextlib
import dataclasses
import json
import time

__all__ = ["Asked", "Upstream", "Wire", "chunked", "serving", "sized"]


@dataclasses.dataclass
class Asked:
    method: str
    target: str
    headers: dict
    body: bytes
    nth_on_connection: int
    raw_head: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Wire:
    """The connection, as a script sees it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, *parts):
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    def cut(self):
        self.writer.transport.abort()

    async def gone(self, within=5.0):
        """Seconds (monotonic clock) at which the peer closed or reset; None when it did not."""
        with contextlib.suppress(TimeoutError):
            try:
                async with asyncio.timeout(within):
                    while await self.reader.read(65536):
                        pass
            except ConnectionError:
                pass
            return time.monotonic()
        return None


class Upstream:
    def __init__(self, script):
        self.script = script
        self.asked = []
        self.connections = 0
        self.open = 0
        self.url = ""
        self._tasks = set()

    async def __call__(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        self.open += 1
        wire, count = Wire(reader, writer), 0
        try:
            while True:
                asked = await self._read(reader, count)
                self.asked.append(asked)
                count += 1
                if await self.script(asked, wire) == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError, OSError):
                await writer.wait_closed()

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    async def _read(reader, count):
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in pairs}
        method, target, _ = first.split(" ")
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, target, headers, body, count, raw)


@contextlib.asynccontextmanager
async def serving(script, *, ssl=None, port=0):
    """``async with serving(script) as upstream``; `upstream.url` has no trailing slash."""
    upstream = Upstream(script)
    server = await asyncio.start_server(upstream, "127.0.0.1", port, ssl=ssl, limit=1 << 24)
    port = server.sockets[0].getsockname()[1]
    upstream.url = f"{'https' if ssl else 'http'}://{'localhost' if ssl else '127.0.0.1'}:{port}"
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()
        await server.wait_closed()


def sized(body, *, status="200 OK", headers=()):
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked(*pieces, status="200 OK", headers=(), end=True):
    head = [f"HTTP/1.1 {status}", "transfer-encoding: chunked", *headers]
    out = "\r\n".join(head).encode() + b"\r\n\r\n"
    out += b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return out + (b"0\r\n\r\n" if end else b"")
