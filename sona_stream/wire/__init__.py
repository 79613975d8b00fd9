"""Sans-IO codecs of the OpenAI wire: bytes in, values out, and back. Nothing here opens a socket."""

from .answer_encoder import BodyEncoder, StreamEncoder, completion_id
from .answer_parser import AnswerParser
from .decoded_request import DecodedRequest
from .embeddings import EmbeddingsRequest, decode_embeddings_request, encode_embeddings
from .errors import encode_error, encode_error_event, error_body
from .hop_by_hop import HOP_BY_HOP
from .model_name import read_model, replace_model
from .models import encode_model, encode_models
from .request_fields import read_user
from .requests import decode_request
from .sse import DONE, PING, SseDecoder, encode_event

__all__ = [
    "DONE",
    "HOP_BY_HOP",
    "PING",
    "AnswerParser",
    "BodyEncoder",
    "DecodedRequest",
    "EmbeddingsRequest",
    "SseDecoder",
    "StreamEncoder",
    "completion_id",
    "decode_embeddings_request",
    "decode_request",
    "encode_embeddings",
    "encode_error",
    "encode_error_event",
    "encode_event",
    "encode_model",
    "encode_models",
    "error_body",
    "read_model",
    "read_user",
    "replace_model",
]
