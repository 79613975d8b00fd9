"""Any server that speaks OpenAI's `/v1/embeddings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sona_stream.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable

from .options import check_options, positive, text
from .wordpiece import clip, well_formed

if TYPE_CHECKING:
    import httpx

__all__ = ["HttpEmbedder", "create_embedder"]

_MAX_CHARS = 16384
"""Longer texts are sent as their two ends."""


class HttpEmbedder:
    """One request a batch, no retries: routing falls back to its default sooner than it waits."""

    def __init__(
        self, client: httpx.AsyncClient, *, model: str, dim: int, batch_size: int, send_dimensions: bool = False
    ) -> None:
        """`client` carries base URL, key and timeouts; `dim` is what each answer is checked against."""
        self.name = f"openai-{model}-{dim}"
        self.dim = dim
        self._client = client
        self._model = model
        self._batch_size = batch_size
        self._extra = {"dimensions": dim} if send_dimensions else {}

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts -> (n, dim), rows of unit length; an empty text gives a zero row and is not sent.

        Raises UpstreamTimeout, UpstreamUnreachable, UpstreamError (status) or UpstreamProtocolError (shape).
        """
        out = np.zeros((len(texts), self.dim), np.float32)
        filled = [i for i, query in enumerate(texts) if query.strip()]
        for start in range(0, len(filled), self._batch_size):
            rows = filled[start : start + self._batch_size]
            out[rows] = await self._batch([well_formed(clip(texts[i], _MAX_CHARS)) for i in rows])
        return out

    async def _batch(self, texts: list[str]) -> NDArray[np.float32]:
        import httpx

        body = {"model": self._model, "input": texts, "encoding_format": "float", **self._extra}
        try:
            response = await self._client.post("embeddings", json=body)
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(f"{self.name}: no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise UpstreamUnreachable(f"{self.name}: {error or type(error).__name__}") from error
        if response.status_code != 200:
            raise UpstreamError(f"{self.name}: status {response.status_code}", body=response.content)
        return self._unit_rows(response, len(texts))

    def _unit_rows(self, response: httpx.Response, count: int) -> NDArray[np.float32]:
        """(count, dim), put in order by their ``index``."""
        try:
            data = response.json()["data"]
            vectors = {int(item["index"]): np.asarray(item["embedding"], np.float32) for item in data}
            rows = np.stack([vectors[i] for i in range(count)])
        except (KeyError, TypeError, ValueError) as error:
            raise UpstreamProtocolError(f"{self.name}: the answer is not a list of {count} embeddings") from error
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UpstreamProtocolError(
                f"{self.name}: an embedding has the shape {rows.shape[1:]}, "
                f"sona.routing.embedder_options.dim says ({self.dim},)"
            )
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise UpstreamProtocolError(f"{self.name}: an embedding is not finite")
        return np.asarray(rows / np.maximum(norms, 1e-12), np.float32)


def create_embedder(options: Mapping[str, Any], settings: Any = None) -> HttpEmbedder:
    """`options`: ``api_base`` (up to and with ``/v1``), ``model``, ``dim``; ``api_key``, ``timeout`` (seconds,
    default 2), ``connect_timeout`` (1), ``batch_size`` (64), ``send_dimensions`` (false).
    """
    known = {"api_base", "model", "dim", "api_key", "timeout", "connect_timeout", "batch_size", "send_dimensions"}
    check_options("openai", options, known)
    base, model, dim = text(options, "api_base"), text(options, "model"), int(positive(options, "dim"))
    batch_size = int(positive(options, "batch_size", 64))
    timeout, connect = positive(options, "timeout", 2.0), positive(options, "connect_timeout", 1.0)
    headers = {"authorization": f"Bearer {text(options, 'api_key')}"} if "api_key" in options else {}
    import httpx

    client = httpx.AsyncClient(
        base_url=f"{base.rstrip('/')}/", headers=headers, timeout=httpx.Timeout(timeout, connect=connect)
    )
    return HttpEmbedder(
        client, model=model, dim=dim, batch_size=batch_size, send_dimensions=bool(options.get("send_dimensions"))
    )
