"""The stages of a request, one middleware a file. They don't know each other; `sona_stream.app` stacks them:

route -> record -> fallback -> adapt -> score -> backend
"""

from __future__ import annotations

from .adapt import adapt
from .fallback import fallback
from .record import record
from .route import route
from .score import score

__all__ = ["adapt", "fallback", "record", "route", "score"]
