"""Clients: one that drives the ASGI callable itself, and one on a raw socket."""

import asyncio
import contextlib
import dataclasses
import json
from urllib.parse import urlsplit


@dataclasses.dataclass
class Reply:
    status: int | None = None
    headers: dict = dataclasses.field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    def json(self):
        return json.loads(self.body)


class Asked:
    """One request to an ASGI application. ``leave()`` disconnects."""

    def __init__(self, app, method, path, body=b"", headers=(), chunks=None):
        path, _, query = path.partition("?")
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in dict(headers).items()],
        }
        self.app, self.reply = app, Reply()
        pieces = chunks if chunks is not None else [body]
        self.inbox = asyncio.Queue()
        for i, piece in enumerate(pieces):
            self.inbox.put_nowait({"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1})
        self.wrote = asyncio.Event()

    async def receive(self):
        return await self.inbox.get()

    def leave(self):
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def send(self, message):
        reply = self.reply
        if message["type"] == "http.response.start":
            assert reply.status is None
            reply.status, reply.headers = message["status"], dict(message["headers"])
            names = [name for name, _ in message["headers"]]
            assert len(names) == len(set(names)), f"a header is sent twice: {names}"
        else:
            assert not reply.complete
            assert reply.status is not None
            reply.body += message.get("body", b"")
            reply.complete = not message.get("more_body", False)
            if reply.complete:
                self.leave()  # as uvicorn does
        self.wrote.set()

    async def run(self):
        await self.app(self.scope, self.receive, self.send)
        return self.reply


async def ask(app, method, path, body=None, headers=()):
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return await asyncio.wait_for(Asked(app, method, path, data, headers).run(), 10)


def chat(stream=True, **fields):
    return {"model": "m1", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}


def chat_bytes(**fields):
    return json.dumps(chat(**fields)).encode()


def data_events(body):
    """The data of server-sent events; asserts that every byte belongs to a whole event."""
    assert body.endswith(b"\n\n"), body[-40:]
    blocks = [block for block in body.split(b"\n\n") if block]
    assert all(line.startswith((b"data:", b":")) for block in blocks for line in block.split(b"\n"))
    return [block.removeprefix(b"data: ") for block in blocks if block.startswith(b"data:")]


def texts(body):
    events = [json.loads(event) for event in data_events(body) if event != b"[DONE]"]
    return "".join(c["delta"].get("content") or "" for event in events for c in event.get("choices", ()))


class Raw:
    """HTTP/1.1 on a socket, by hand."""

    def __init__(self, url):
        self.parts = urlsplit(url)

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(self.parts.hostname, self.parts.port)
        return self

    async def __aexit__(self, *exc):
        await self.close()

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def post(self, path, body, *headers):
        head = [f"POST {path} HTTP/1.1", "host: test", f"content-length: {len(body)}", *headers]
        self.writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    async def head(self):
        """(status, headers) of the next answer."""
        text = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        lines = text.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def chunk(self):
        """One chunk of a chunked body; b"" is its end."""
        size = int(await asyncio.wait_for(self.reader.readline(), 5), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def reply(self):
        status, headers = await self.head()
        body = b""
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        else:
            while data := await self.chunk():
                body += data
        return Reply(status, headers, body, True)
