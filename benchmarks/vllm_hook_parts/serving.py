"""What only a real `vllm serve` tells: how long a PUT takes, and after how many streamed tokens it is seen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np

from sona_stream_adapters.vllm_plugin.codec import capture_from, pack, unpack

__all__ = ["Serving"]

_KEY = "benchmark/swapped"
_TOKENS = 40
_QUESTION = [{"role": "user", "content": "Tell me what a harbour is for."}]


class Serving:
    """One server's control routes and streams, over one connection each."""

    def __init__(self, base_url: str, *, model: str, key: str) -> None:
        self._model = model
        self._client = httpx.Client(base_url=base_url, headers={"x-sona-control": key}, timeout=120)
        self._info: dict[str, Any] = self._client.get("/v1/sona/info").raise_for_status().json()
        self._version = 0
        self._steady = self._steadily()

    def close(self) -> None:
        """Its connections."""
        self._client.close()

    def put_ms(self, count: int) -> list[float]:
        """Milliseconds of each PUT of a new version, rank 10."""
        found = []
        for i in range(count):
            body = self._packed(self._steady, seed=i)
            began = time.perf_counter()
            self._put(body)
            found.append((time.perf_counter() - began) * 1e3)
        self._drop()
        return found

    def put_ms_while_streaming(self, count: int) -> list[float]:
        """The same while an answer streams: a PUT waits for the step that runs."""
        stop = threading.Event()

        def stream() -> None:
            with httpx.Client(base_url=self._client.base_url, timeout=120) as client:
                while not stop.is_set():
                    for _ in self._tokens(client, tokens=256):
                        if stop.is_set():
                            break

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            time.sleep(1.0)
            found = []
            for i in range(count):
                time.sleep(0.011 * (i % 7))  # anywhere in a step
                found += self.put_ms(1)
            return found
        finally:
            stop.set()
            thread.join()

    def tokens_to_effect(self, after: int) -> int | None:
        """PUT when `after` tokens have come: the number of the first that it changed, less `after`. None when it
        changed none.
        """
        plain = list(self._tokens(self._client, key=_KEY))
        body = self._packed(self._steady, seed=after)
        seen = []
        with httpx.Client(base_url=self._client.base_url, headers=self._client.headers, timeout=120) as client:
            for token in self._tokens(client, key=_KEY):
                seen.append(token)
                if len(seen) == after:
                    self._put(body)
        self._drop()
        changed = [i for i, (old, new) in enumerate(zip(plain, seen, strict=False)) if old != new]
        return changed[0] + 1 - after if changed else None

    def counters(self) -> dict[str, Any]:
        """Of the worker's hook."""
        found: dict[str, Any] = self._client.get("/v1/sona/stats").raise_for_status().json()["engines"][0]
        return found

    def _steadily(self) -> np.ndarray[Any, Any]:
        """(d,) a direction in which every state of an answer goes forward: the mean of one's, of length 1."""
        for _ in self._tokens(self._client, rid="direction"):
            pass
        read: Callable[[], httpx.Response] = lambda: self._client.get(  # noqa: E731
            "/v1/sona/captures", params={"rid": "direction", "hidden": 1}
        )
        answer = read()
        while answer.is_success and answer.content[:1] == b"{":
            time.sleep(0.05)
            answer = read()
        arrays, facts = unpack(answer.raise_for_status().content)
        mean = capture_from(arrays, facts, hidden_dim=int(self._info["hidden_dim"])).hidden.mean(0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)

    def _packed(self, steady: np.ndarray[Any, Any], seed: int) -> bytes:
        """An adapter that moves every state by its own length in a random direction: no token stays likely."""
        rng, d = np.random.default_rng(seed), len(steady)
        away = rng.standard_normal(d).astype(np.float32)
        arrays = {
            "micro.lora_A": np.stack([steady, steady]),
            "micro.lora_B": np.stack([away / np.linalg.norm(away)] * 2, axis=1),
            "base.lora_A": np.zeros((8, d), np.float32),
            "base.lora_B": np.zeros((d, 8), np.float32),
        }
        return pack(arrays, {"fingerprint": self._info["fingerprint"]})

    def _put(self, body: bytes) -> None:
        self._version += 1
        query: dict[str, str | int] = {"key": _KEY, "version": self._version}
        self._client.put("/v1/sona/adapters", params=query, content=body).raise_for_status()

    def _drop(self) -> None:
        self._client.delete("/v1/sona/adapters", params={"key": _KEY}).raise_for_status()

    def _tokens(
        self, client: httpx.Client, *, tokens: int = _TOKENS, key: str | None = None, rid: str | None = None
    ) -> Iterator[int]:
        """Ids of a greedy answer as they are streamed."""
        xargs = {name: value for name, value in (("sona", key), ("sona_rid", rid)) if value is not None}
        body = {
            "model": self._model,
            "messages": _QUESTION,
            "stream": True,
            "temperature": 0,
            "max_tokens": tokens,
            "ignore_eos": True,
            "return_token_ids": True,
            "vllm_xargs": xargs,
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if not answer.is_success:
                answer.read()
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        yield from choice.get("token_ids") or ()
