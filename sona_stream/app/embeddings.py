"""`/v1/embeddings` answered by the embedder that routing uses."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..events import Headers
from ..protocols import Embedder
from ..wire import decode_embeddings_request, encode_embeddings

__all__ = ["embed", "model_name"]

_HEADERS: Headers = ((b"content-type", b"application/json"),)


def model_name(embedder: Embedder) -> str:
    """What `/v1/models` lists it as."""
    return f"sona/{embedder.name}"


async def embed(embedder: Embedder, body: bytes) -> tuple[int, Headers, bytes]:
    """(status, headers, body). Raises `InvalidRequest`. Its tokens are not those of a language model, so usage
    counts none.
    """
    asked = decode_embeddings_request(body)
    if asked.dimensions not in (None, embedder.dim):
        raise InvalidRequest(
            f"dimensions must be {embedder.dim} for {asked.model}, not {asked.dimensions}", param="dimensions"
        )
    rows = await embedder.embed(asked.texts)
    vectors = [row.astype("<f4").tobytes() for row in rows] if asked.base64 else rows.tolist()
    return 200, _HEADERS, encode_embeddings(asked.model, vectors, tokens=0)
