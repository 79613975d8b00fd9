"""Decoding of a client's body by endpoint."""

from __future__ import annotations

from ..events import Endpoint
from .chat import decode_chat_request
from .completions import decode_completion_request
from .decoded_request import DecodedRequest

__all__ = ["decode_request"]

_DECODERS = {"chat.completions": decode_chat_request, "completions": decode_completion_request}


def decode_request(endpoint: Endpoint, body: bytes) -> DecodedRequest:
    """What the body asks for. Unknown fields are ignored here and stay in the body.

    Raises `InvalidRequest` that names the field and its limit.
    """
    return _DECODERS[endpoint](body)
