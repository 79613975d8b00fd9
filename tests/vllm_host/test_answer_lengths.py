"""What vLLM drew after the end of an answer teaches nothing: the capture is as long as what the client got."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_vllm_server import KEY, MODEL, D, T, _send

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.events import Delta, Request, Sampling
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.vllm import create_backend

SHOWN = T - 2
"""tokens of the answer that the client gets; the engine draws all T before it hears of the end"""


def signal(tokens):
    w = LoraWeights(LowRank(np.ones((1, D), np.float32), np.full((D, 1), 0.1, np.float32), 1.0))
    return TokenSignal(w, [np.ones(tokens, np.float32)], 0.0, None)


@pytest.fixture
def ending(vllm, monkeypatch):
    """Calls with how a stream ends: its last chunks after `SHOWN` tokens, None where it just breaks off."""

    def answers(last):
        async def chat(asked, send):
            rid = asked["vllm_xargs"]["sona_rid"]
            vllm.app.seen.append(asked)
            tokens = vllm.worker.toy.answer(rid, [1, 2, 3], key=None)
            chunks = []
            for i, token in enumerate(tokens[:SHOWN]):
                reason = "stop" if last is not None and i == SHOWN - 1 else None
                choice = {"index": 0, "delta": {"content": chr(97 + token)}, "finish_reason": reason}
                if asked.get("return_token_ids"):
                    choice["token_ids"] = [token]
                chunks.append({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
            body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (*chunks, *(last or ())))
            await _send(send, 200, body + (b"" if last is None else b"data: [DONE]\n\n"), b"text/event-stream")

        monkeypatch.setattr(vllm.app, "_chat", chat)

    return answers


def usage(tokens):
    counts = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": counts}


async def answered(vllm, settings, *, stop=()):
    """(capture, token ids that the client got) of a request with the id r."""
    deployment = Deployment(
        model_name="m", provider="vllm", upstream_model=MODEL, api_base=vllm.base, params={"control_key": KEY}
    )
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}], "stop": list(stop)}
    request = Request(
        id="r",
        endpoint="chat.completions",
        model="m",
        body=json.dumps(body).encode(),
        stream=True,
        sampling=Sampling(stop=stop),
    )
    backend = create_backend(deployment, settings)
    async with backend:
        await backend.probe()
        ids = []
        async with backend(request) as events:
            async for event in events:
                if isinstance(event, Delta):
                    ids += [one for piece in event.pieces for one in piece.token_ids]
        capture = await backend.host.capture("r")
        assert (await backend.host.gradient([capture], signal(len(capture)))).tokens == len(capture)
    return capture, ids


@pytest.mark.parametrize(
    ("last", "storage", "stop"),
    [
        ([usage(SHOWN)], "none", ()),
        ([usage(SHOWN)], "features", ("x",)),
        ([], "features", ()),
        ([], "none", ("x",)),
    ],
)
async def test_over_http_it_is_what_the_server_counted_or_the_ids_it_told(vllm, ending, last, storage, stop):
    ending(last)
    capture, ids = await answered(vllm, SonaSettings(storage=storage), stop=stop)
    assert len(capture) == SHOWN
    assert ids in ([], capture.token_ids.tolist())


async def test_where_nothing_tells_the_length_the_whole_stays(vllm, ending):
    ending([])
    capture, ids = await answered(vllm, SonaSettings(storage="none"))
    assert (len(capture), ids) == (T, [])
    assert "return_token_ids" not in vllm.app.seen[-1]
    ending([{"error": {"message": "the engine is dead", "type": "internal"}}])
    capture, ids = await answered(vllm, SonaSettings())
    assert (len(capture), len(ids)) == (T, SHOWN)


async def test_a_capture_of_the_right_length_is_asked_for_once(vllm, ending):
    ending([usage(T)])
    capture, _ = await answered(vllm, SonaSettings())
    assert capture.handle is not None
    assert vllm.worker.calls.count("sona_capture") == 1
    assert "sona_keep" not in vllm.worker.calls
