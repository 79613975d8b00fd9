"""A server that looks like vLLM with the plug-in: the real routes, guard and codec over a toy model in numpy."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1] / "learner"))  # the toy model is the learner's tests' own

from toy import D, T, ToyHost, V

from sona_stream.errors import HostError
from sona_stream.lora import HiddenSpace
from sona_stream_adapters.vllm_plugin import codec, codec_computed
from sona_stream_adapters.vllm_plugin.endpoint import SonaEndpoint

KEY = "control-key-of-the-tests"
MODEL = "toy"


class Worker:
    """The RPC methods, each answer as the plug-in's workers give it."""

    def __init__(self, seed=0, fingerprint="toy", rank=0):
        self.toy = ToyHost(seed=seed, fingerprint=fingerprint)
        self.instance = secrets.token_hex(4)
        self.kept = {}
        self.put_log, self.calls = [], []
        self.episodes, self.episode_budget = {}, None
        self.disabled, self.budget = "", None
        self.unserved, self.breaks = {}, ""
        self.overtaken: asyncio.Event | None = None
        """The next answer's failure of the hook comes before who looks after the hook gets to the engine."""
        self.rank = rank

    def __getattr__(self, name):
        if not name.startswith("sona_"):
            raise AttributeError(name)
        method = getattr(self, name.removeprefix("sona_") + "_")

        def call(*args):
            self.calls.append(name)
            try:
                return {"ok": True, "error": "", **method(*args)}
            except Gone as gone:
                return {"ok": False, "error": "gone", "gone": gone.args[0]}
            except (HostError, codec.CodecError) as error:
                return {"ok": False, "error": str(error)}

        return call

    def install_(self):
        facts = {"hidden_dim": D, "vocab_size": V, "fingerprint": self.toy.fingerprint, "model": MODEL}
        now = {"disabled": self.disabled, "unserved": dict(self.unserved)}
        return {**facts, **now, "instance": self.instance, "problems": [], "last_pp": True}

    def fail(self, rid):
        """The hook fails in the middle of this answer."""
        self.disabled, self.breaks = self.breaks, ""
        self.toy.captures.pop(rid, None)
        self.unserved[rid] = f"the hook failed while it was being answered ({self.disabled})"

    def stats_(self):
        return {"puts": len(self.put_log), "disabled": self.disabled}

    def adapters_(self):
        rows = [{"key": key, "version": version} for key, (version, _) in self.toy.adapters.items()]
        return {"adapters": rows}

    def put_(self, key, version, blob):
        arrays, facts = codec.unpack(blob)
        if facts.get("fingerprint") != self.toy.fingerprint:
            raise HostError(f"adapter {key!r} was made for {facts.get('fingerprint')}")
        weights = codec.weights_from(arrays, facts)
        if not weights.is_finite() or weights.hidden_dim != D:
            raise HostError(f"adapter {key!r}: not finite, or not {D} wide")
        evicted = []
        if self.budget is not None and key not in self.toy.adapters and len(self.toy.adapters) >= self.budget:
            evicted.append(next(iter(self.toy.adapters)))
            del self.toy.adapters[evicted[0]]
        self.toy.adapters[key] = (version, weights)
        self.put_log.append((key, version))
        return {"evicted": evicted}

    def drop_(self, key, version=None):
        return {"dropped": int(self.toy.adapters.pop(key, None) is not None)}

    def capture_(self, rid, hidden=False):
        if rid in self.unserved:
            return {"state": "unknown", "reason": self.unserved[rid], "unserved": True}
        capture = self.toy.captures.get(rid)
        if capture is None:
            return {"state": "unknown", "reason": "SONA_VLLM_RING_TOKENS bounds the ring"}
        return {"state": "done", "blob": codec.pack(*codec.capture_parts(self._keep(rid, capture), hidden=hidden))}

    def _keep(self, rid, capture):
        handle = f"{self.instance}-{rid}"
        self.kept[handle] = dataclasses.replace(capture, handle=handle)
        return self.kept[handle]

    def keep_(self, blob):
        capture = codec.capture_from(*codec.unpack(blob), hidden_dim=D)
        return {"handle": self._keep(f"kept-{secrets.token_hex(3)}", capture).handle}

    def release_(self, rid):
        self.toy.captures.pop(rid, None)
        return {}

    def _find(self, handles):
        gone = [handle for handle in handles if handle not in self.kept]
        if gone:
            raise Gone(gone)
        return [self.kept[handle] for handle in handles]

    def gradient_(self, handles, blob, options):
        arrays, facts = codec.unpack(blob)
        captures = self._find(handles)
        for i, capture in enumerate(captures):
            if f"logprobs_{i}" in arrays:
                captures[i] = dataclasses.replace(capture, logprobs=arrays[f"logprobs_{i}"])
        signal = codec_computed.signal_from(arrays, {**facts, **options}, len(handles))
        return self._later(
            {"blob": codec.pack(*codec_computed.gradient_parts(_run(self.toy.gradient(captures, signal))))}
        )

    def evaluate_(self, handles, blob, options):
        weights = codec.weights_from(*codec.unpack(blob))
        found = _run(self.toy.evaluate(self._find(handles), weights))
        return self._later({"blob": codec.pack(*codec_computed.evaluation_parts(found))})

    def predicted_kl_(self, handles, blob, options):
        old, new = (codec.weights_from(*codec.unpack(blob), prefix=one) for one in ("old.", "new."))
        return {"kl": _run(self.toy.predicted_kl(self._find(handles), old, new))}

    def hidden_space_(self, handles, version=""):
        hidden = np.concatenate([one.hidden for one in self._find(handles)])
        space = HiddenSpace(hidden.mean(axis=0), hidden.std(axis=0), version)
        return {"blob": codec.pack(*codec_computed.space_parts(space))}

    def put_episode_(self, key, blob):
        arrays, facts = codec.unpack(blob)
        if facts.get("fingerprint") != self.toy.fingerprint:
            raise HostError(f"episode {key!r} was made for {facts.get('fingerprint')}")
        self.episodes[key] = (arrays, facts)
        self.put_log.append((key, "episode"))
        others = [one for one in self.episodes if one != key]
        evicted = others[:1] if self.episode_budget is not None and len(others) >= self.episode_budget else []
        for one in evicted:
            del self.episodes[one]
        return {"key": key, "evicted": evicted}

    def drop_episode_(self, key):
        return {"dropped": int(self.episodes.pop(key, None) is not None)}

    def curvature_(self, handles, blob, options):
        elsewhere = codec.unpack(blob)[0].get("elsewhere")
        found = _run(self.toy.curvature(self._find(handles), elsewhere))
        return self._later({"blob": codec.pack(*codec_computed.curvature_parts(found))})

    def _later(self, answer):
        self.jobs = {"job-1": [{"done": False}, {"done": True, **answer}]}
        return {"job": "job-1"}

    def advance_(self, job):
        return self.jobs[job].pop(0)


class Gone(Exception):
    pass


def _run(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the toy never waits")


def plain(value):
    """Whether vLLM's RPC could carry it."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, str | int | float | bytes)


class Client:
    """vLLM's engine client."""

    model_config = SimpleNamespace(max_model_len=256)

    def __init__(self, worker):
        self.worker = worker

    async def collective_rpc(self, method, timeout, args):  # noqa: ASYNC109 - as vLLM has it
        assert plain(args), args
        if method == "sona_stats" and self.worker.overtaken:
            await self.worker.overtaken.wait()
        result = getattr(self.worker, method)(*args)
        assert plain(result), result
        return [result]

    async def generate(self, prompt, params, request_id):
        ids, args = prompt["prompt_token_ids"], params["extra_args"]
        assert params["prompt_logprobs"] == 0
        at, limit = args["sona_teach"], self.model_config.max_model_len
        if len(ids) >= limit:
            raise ValueError(f"a prompt of {len(ids)} tokens leaves no room in {limit}")
        ids = [*ids, *([args["sona_last"]] if "sona_last" in args else [])]
        toy = self.worker.toy
        toy.captures[args["sona_rid"]] = await toy.encode(
            ids[:at], ids[at:], request_id=args["sona_rid"], temperature=params["temperature"]
        )
        yield object()

    def get_tokenizer(self):
        return SimpleNamespace(
            encode=lambda text, add_special_tokens: [ord(one) % (V - 1) + 1 for one in text], eos_token_id=0
        )


class FakeApp:
    """What of FastAPI's application the plug-in uses, around a chat route."""

    def __init__(self, worker):
        self.worker = worker
        self.app, self.mounts = self._routes, {}
        self.seen = []

    def add_middleware(self, factory, **options):
        self.app = factory(self.app, **options)

    def mount(self, path, app):
        self.mounts[path] = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        await self.app(scope, receive, send)

    async def _routes(self, scope, receive, send):
        for path, app in self.mounts.items():
            if scope["path"].startswith(f"{path}/"):
                await app(scope, receive, send)
                return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/v1/models":
            await _send(send, 200, json.dumps({"data": [{"id": MODEL}]}).encode(), b"application/json")
        elif scope["path"] == "/v1/chat/completions":
            await self._chat(json.loads(body), send)
        else:
            await _send(send, 404, b'{"error": {"message": "not found", "type": "NotFound"}}', b"application/json")

    async def _chat(self, asked, send):
        self.seen.append(asked)
        xargs = asked.get("vllm_xargs") or {}
        prompt = [1 + ord(one) % (V - 1) for one in asked["messages"][-1]["content"]]
        rid = xargs.get("sona_rid") or secrets.token_hex(4)
        off = self.worker.disabled
        tokens = self.worker.toy.answer(rid, prompt, key=None if off else xargs.get("sona"))
        if self.worker.overtaken:
            self.worker.fail(rid)
            self.worker.overtaken.set()
        if off and "sona_rid" in xargs:
            self.worker.unserved[rid] = f"the hook had switched itself off before ({off})"
        if off or "sona_rid" not in xargs:
            del self.worker.toy.captures[rid]
        chunks = []
        for i, token in enumerate(tokens):
            choice = {"index": 0, "delta": {"content": chr(97 + token)}, "finish_reason": None}
            if asked.get("return_token_ids"):
                choice["token_ids"] = [token]
            if i == len(tokens) - 1:
                choice["finish_reason"] = "stop"
            chunk = {"id": f"chatcmpl-{rid}", "object": "chat.completion.chunk", "choices": [choice]}
            if i == 0 and asked.get("return_token_ids"):
                chunk["prompt_token_ids"] = prompt
            chunks.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await _send(self._breaking(rid, send), 200, b"".join(chunks) + b"data: [DONE]\n\n", b"text/event-stream")

    def _breaking(self, rid, send):
        async def breaking(message):
            await send(message)
            if self.worker.breaks and message["type"] == "http.response.start":
                self.worker.fail(rid)

        return breaking


async def _send(send, status, body, kind):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


class Endpoint(SonaEndpoint):
    sampling = dict  # as vLLM's SamplingParams, without vLLM


def environ(**more):
    return {"SONA_VLLM": "1", "SONA_VLLM_KEY": KEY, **more}


async def build(worker, env=None, client=None):
    """The whole application over a worker."""
    plugin = Endpoint(environ() if env is None else env)
    app = FakeApp(worker)
    plugin.attach_router(app)
    client = client or Client(worker)
    await plugin.init_state(client, SimpleNamespace(), SimpleNamespace(served_model_name=[MODEL], model="x"))
    return app


class FakeVllm:
    """On a port of its own, in a thread; `stop` and `start` are a restart."""

    def __init__(self, seed=0, fingerprint="toy"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.seed, self.fingerprint = seed, fingerprint
        self.worker = self.app = None

    @property
    def base(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stop()

    def start(self, *, seed=None, fingerprint=None, plugin=True):
        """Another engine start; another fingerprint is another model."""
        self.worker = Worker(self.seed if seed is None else seed, fingerprint or self.fingerprint)
        env = environ() if plugin else {}
        self._server = None

        async def serve():
            self.app = await build(self.worker, env)
            config = uvicorn.Config(self.app, host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
            self._server = uvicorn.Server(config)
            await self._server.serve()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while self._server is None or not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(10)


__all__ = ["KEY", "MODEL", "Client", "D", "FakeApp", "FakeVllm", "T", "V", "Worker", "build", "environ"]
