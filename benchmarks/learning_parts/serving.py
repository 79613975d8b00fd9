"""A `sona-stream serve` with a local model and a few tenants, and clients of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import yaml
from served import served

from sona_stream.config.keys import hash_key

__all__ = ["ADMIN", "METRIC", "MODEL", "Answer", "Client", "Server", "server"]

MODEL = "smollm2-135m-instruct"
METRIC = "reward"
ADMIN = "operator"


@dataclasses.dataclass(frozen=True)
class Server:
    """A running one: its address, a key a tenant, and the folder of its state."""

    base_url: str
    keys: Mapping[str, str]
    state: Path


@contextmanager
def server(
    tenants: Sequence[str], *, threads: int, sona: Mapping[str, Any] | None = None, same_tenant: bool = False
) -> Iterator[Server]:
    """Starts one. ``sona`` is merged into its section of the same name; tenant `ADMIN` may do everything.
    ``same_tenant``: the others are keys of one tenant, each an end user of its own.
    """
    keys = {name: f"sk-{os.urandom(16).hex()}" for name in (*tenants, ADMIN)}
    roles = {ADMIN: ["use", "teach", "admin"]}
    settings = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {"model": f"local/{MODEL}", "threads": threads, "logit_cache_mb": 2048},
            }
        ],
        "sona": {
            "metrics": {METRIC: {"min": 0, "max": 1}},
            "keys": [
                {
                    "key": hash_key(key),
                    "tenant": "all" if same_tenant and name != ADMIN else name,
                    "roles": roles.get(name, ["use", "teach"]),
                }
                for name, key in keys.items()
            ],
            **(sona or {}),
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        with served(yaml.safe_dump(settings), state=state) as base_url:
            yield Server(base_url, keys, state)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client gets for one prompt."""

    question: str
    text: str
    finish_reason: str
    request_id: str
    adapter: str
    """that served it; "none" for the model alone"""
    episodes: str = ""
    """keys of the memory's episodes that acted, as the header names them"""


class Client:
    """Somebody with a key."""

    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=httpx.Timeout(600)
        )

    async def __aenter__(self) -> Self:
        """Leaving closes the connections."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Whatever happened."""
        await self.http.aclose()

    async def chat(
        self, messages: Sequence[Mapping[str, str]], headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        """One chat completion. Raises httpx.HTTPStatusError."""
        body = {"model": MODEL, "messages": list(messages), **options}
        response = await self.http.post("/v1/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        choice, headers = response.json()["choices"][0], response.headers
        return Answer(
            messages[-1]["content"],
            choice["message"]["content"],
            choice["finish_reason"],
            headers["x-sona-request-id"],
            headers.get("x-sona-adapter", "none"),
            headers.get("x-sona-episodes", ""),
        )

    async def feedback(self, request_id: str, **judgement: Any) -> None:
        """``value`` of the metric, a ``rating`` or a ``correction``; returns once the server has it."""
        if "value" in judgement:
            judgement = {"metric_name": METRIC, **judgement}
        (await self.http.post("/v1/feedback", json={"request_id": request_id, **judgement})).raise_for_status()

    async def settled(self) -> None:
        """Waits until everything said so far is learned. Needs the key of `ADMIN`."""
        while True:
            response = await self.http.get("/v1/sona/stats")
            response.raise_for_status()
            if response.json()["learner"]["idle"]:
                return
            await asyncio.sleep(0.5)

    async def get(self, path: str) -> Any:
        """Any page -> its JSON. Raises httpx.HTTPStatusError."""
        response = await self.http.get(path)
        response.raise_for_status()
        return response.json()

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any other call -> its JSON. Raises httpx.HTTPStatusError."""
        response = await self.http.post(path, json=dict(body or {}))
        response.raise_for_status()
        return response.json()
