"""Episodes as JSON lines, for whoever wants them elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import json

import numpy as np
from numpy.typing import NDArray

from ...episodes import Episode
from .encoding import Codes, Head

__all__ = ["line_of"]


def line_of(episode: Episode, head: Head, static: Codes, token_ids: NDArray[np.int32]) -> bytes:
    """One line with its end. Text where it is kept, else what is known instead: token ids, and the question's
    vectors as base64 of int8, whose scale does not matter.
    """
    facts = dataclasses.asdict(episode)
    question, text = facts.pop("question"), facts.pop("text")
    if question is not None:
        facts["question"] = question
    if text is not None:
        body = text["body"]
        facts["answer"] = text["answer"]
        facts["body"] = None if body is None else body.decode("utf-8", "replace")
    if question is None or text is None:
        facts["token_ids"] = token_ids.tolist()
        facts["static"] = _base64(static)
        facts["contextual"] = None if head.contextual is None else _base64(head.contextual)
    return json.dumps(facts).encode("ascii") + b"\n"


def _base64(codes: Codes) -> str:
    return base64.b64encode(codes.values.tobytes()).decode("ascii")
