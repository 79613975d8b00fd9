"""Which path leads to which endpoint, and the role it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from ..events import Role
from . import admin, embeddings, health, memory, models
from .feedback import post_feedback
from .generate import chat_completions, completions
from .incoming import Call
from .responses import Response

__all__ = ["PREFIXES", "ROUTES", "Route"]

Endpoint = Callable[[Call], Awaitable[Response | None]]
"""Gives an answer to be sent, or None when it has sent one itself."""

Route = Mapping[str, tuple[Endpoint, Role | None]]
"""Method -> (endpoint, role); without a role everybody may."""

_LIVENESS: Route = {"GET": (health.liveness, None)}

ROUTES: Mapping[str, Route] = {
    "/v1/chat/completions": {"POST": (chat_completions, "use")},
    "/v1/completions": {"POST": (completions, "use")},
    "/v1/embeddings": {"POST": (embeddings.create_embeddings, "use")},
    "/v1/models": {"GET": (models.list_models, "use")},
    "/v1/feedback": {"POST": (post_feedback, "teach")},
    "/v1/feedback/undo": {"POST": (memory.undo, "teach")},
    "/v1/sona/stats": {"GET": (admin.stats, "admin")},
    "/v1/sona/patterns": {"GET": (admin.patterns, "admin")},
    "/v1/sona/adapters": {"GET": (admin.adapters, "admin")},
    "/v1/sona/adapters/show": {"GET": (admin.show, "admin")},
    "/v1/sona/adapters/diff": {"GET": (admin.diff, "admin")},
    "/v1/sona/adapters/rollback": {"POST": (admin.rollback, "admin")},
    "/v1/sona/memory": {"GET": (memory.episodes, "admin")},
    "/v1/sona/memory/export": {"GET": (memory.export, "admin")},
    "/v1/sona/memory/promote": {"POST": (memory.promote, "admin")},
    "/v1/sona/memory/forget": {"POST": (memory.forget, "admin")},
    "/v1/sona/freeze": {"POST": (admin.freeze, "admin")},
    "/v1/sona/thaw": {"POST": (admin.thaw, "admin")},
    "/health": _LIVENESS,
    "/health/liveness": _LIVENESS,
    "/health/liveliness": _LIVENESS,
    "/health/readiness": {"GET": (health.readiness, None)},
    "/metrics": {"GET": (health.metrics, None)},
}

PREFIXES: Mapping[str, Route] = {"/v1/models/": {"GET": (models.get_model, "use")}}
