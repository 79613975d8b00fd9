"""What upstreams say and clients ask in these tests."""

import json

from scripted_upstream import sized
from server_clients import Raw

from sona_stream.config.settings import Deployment, RoutingSettings, Settings, SonaSettings

SSE = ("content-type: text/event-stream", "x-request-id: up-1")
STREAM_HEAD = ("HTTP/1.1 200 OK\r\n" + "\r\n".join(SSE) + "\r\ntransfer-encoding: chunked\r\n\r\n").encode()
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


def event(delta, reason=None, **fields):
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    data = {"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **fields}
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def said(text):
    return event({"content": text})


def piece(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


USAGE = (
    b'data: {"id":"c1","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14,"x":{"y":4}}}\n\n'
)
RICH = (
    b": ping\n\n"
    + event({"role": "assistant", "content": "", "reasoning_content": "think "})
    + event({"content": "你好🙂"}, x_vendor={"pattern": 3}, token_ids=[1, 2])
    + event({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": '{"a"'}}]})
    + b": ping\n\n"
    + b"event: odd\r\ndata:"
    + json.dumps({"id": "c1", "choices": []}).encode()
    + b"\r\n\r\n"
    + event({}, "tool_calls")
    + USAGE
    + DONE
)
WHOLE = (
    b'{"id": "c1",  "choices": '
    b'[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}], "v": 1}'
)
MODELS = sized(
    json.dumps({"object": "list", "data": [{"id": "first"}, {"id": "org/second"}]}).encode(),
    headers=("content-type: application/json",),
)


def answers(script):
    """The script for questions; probes get a list of models, and are not counted."""

    async def route(asked, wire):
        if asked.method == "GET":
            await wire.send(MODELS)
            return None
        return await script(asked, wire)

    return route


def sends(*parts, then=None):
    async def script(asked, wire):
        await wire.send(*parts)
        return then

    return answers(script)


def questions(upstream):
    return [one for one in upstream.asked if one.method == "POST"]


def body(stream=True, model="m", **fields):
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}
    ).encode()


CHAT = "/v1/chat/completions"


OK = sized(WHOLE, headers=("content-type: application/json",))


def two(first, second, **routing):
    """Model ``a`` at one upstream, ``b`` at another."""
    entries = tuple(
        Deployment(model_name=name, provider="openai", upstream_model=name, api_base=upstream.url)
        for name, upstream in (("a", first), ("b", second))
    )
    sona = SonaSettings(storage="none", learning="off", routing=RoutingSettings(**routing))
    return Settings(models=entries, sona=sona)


async def ask(url, data, *headers, path=CHAT):
    async with Raw(url) as raw:
        raw.post(path, data, *headers)
        return await raw.reply()
