"""`/v1/embeddings`: passed to the model's backend as it is, or answered by the proxy's own embedder."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..wire import read_model
from .disconnect import ClientWatch
from .headers import for_upstream, forwarded, header_value
from .incoming import Call, read_body
from .models import AUTO
from .responses import Response

__all__ = ["create_embeddings"]


async def create_embeddings(call: Call) -> Response | None:
    """`POST /v1/embeddings`. A client that leaves cancels the upstream call."""
    body = await read_body(call)
    model = read_model(body)
    if model == AUTO:
        raise InvalidRequest(
            f"{AUTO} routes answers, not embeddings, whose spaces differ by model: name one", param="model"
        )
    services = call.app.services
    sent = for_upstream(call.raw_headers, keyed=bool(services.settings.sona.keys))
    call.app.begin(call.id)
    try:
        with ClientWatch(call.receive) as watch:
            status, headers, answer = await services.embeddings(model, body, sent)
            watch.answered()
            kept = forwarded(headers, verbatim=True)
            return Response(status, answer, (*kept, (b"x-sona-model", header_value(model))))
    finally:
        call.app.end(call.id)
    call.app.metrics.left("non_stream")
    return None
