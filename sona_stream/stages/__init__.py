"""The stages of a request, one middleware a file. They don't know each other; `sona_stream.app` stacks them:

overhead -> route -> record -> fallback -> replica -> recall -> adapt -> score -> measure -> backend
"""

from __future__ import annotations

from .adapt import adapt
from .fallback import fallback
from .measure import Meter, measure, overhead
from .recall import recall
from .record import record
from .replica import replica
from .rota import FAILURES, Rota, may_go_elsewhere
from .route import route
from .score import score

__all__ = [
    "FAILURES",
    "Meter",
    "Rota",
    "adapt",
    "fallback",
    "may_go_elsewhere",
    "measure",
    "overhead",
    "recall",
    "record",
    "replica",
    "route",
    "score",
]
