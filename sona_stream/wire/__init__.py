"""Sans-IO codecs of the OpenAI wire: bytes in, values out, and back. Nothing here opens a socket."""

from .answer_encoder import BodyEncoder, StreamEncoder, completion_id
from .errors import encode_error, encode_error_event, error_body
from .models import encode_model, encode_models
from .sse import DONE, PING, SseDecoder, encode_event

__all__ = [
    "DONE",
    "PING",
    "BodyEncoder",
    "SseDecoder",
    "StreamEncoder",
    "completion_id",
    "encode_error",
    "encode_error_event",
    "encode_event",
    "encode_model",
    "encode_models",
    "error_body",
]
