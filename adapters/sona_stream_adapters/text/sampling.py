"""What of a request's sampling parameters a model that runs here can serve."""

from __future__ import annotations

from sona_stream.errors import InvalidRequest
from sona_stream.events import Request

__all__ = ["check_sampling"]

_RANGES = (
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
)


def check_sampling(request: Request, *, name: str, max_choices: int) -> None:
    """Raises InvalidRequest naming the field and its range. ``name``: the model's."""
    sampling = request.sampling
    if request.objections:
        param, said = request.objections[0]
        raise InvalidRequest(said, param=param)
    if request.constrained:
        raise InvalidRequest(f"{name} runs here, with neither tools nor structured outputs", param="tools")
    if not 1 <= sampling.n <= max_choices:
        raise InvalidRequest(f"n must be in 1..{max_choices}, not {sampling.n}", param="n")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {sampling.max_tokens}", param="max_tokens")
    for field, low, high in _RANGES:
        value = getattr(sampling, field)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{field} must be in {low}..{high}, not {value}", param=field)
