"""The routes under ``/v1/sona/``, over HTTP. Each call needs the control key."""

from __future__ import annotations

import logging

from .messages import (
    PREFIX,
    Answer,
    Receive,
    Scope,
    Send,
    Unanswered,
    failure,
    holds_key,
    question,
    read_body,
    reply,
)
from .routes import Routes

__all__ = ["Control"]

_log = logging.getLogger(__name__)

_JSON_LIMIT = 16 << 20


class Control(Routes):
    """ASGI."""

    def __init__(self, key: bytes, *, adapter_bytes: int, capture_bytes: int) -> None:
        super().__init__()
        self.key = key
        self._limits = {"adapter": adapter_bytes + _JSON_LIMIT, "capture": capture_bytes + _JSON_LIMIT}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self._answer(scope, receive)
        except Unanswered as refusal:
            answer = failure(refusal)
        except ConnectionError:
            return
        except Exception as error:
            _log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            answer = failure(
                Unanswered(500, f"the plug-in failed: {error or type(error).__name__}", kind="internal_error")
            )
        await reply(send, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        if not holds_key(scope, self.key, bearer=True):
            self.count("refused_keys")
            raise Unanswered(
                401,
                "the control key is missing or wrong: send `x-sona-control: SONA_VLLM_KEY`",
                kind="invalid_control_key",
            )
        method, name = str(scope["method"]), str(scope["path"]).rpartition(f"{PREFIX}/")[2].strip("/")
        body = await read_body(receive, self._limits.get(self.limit(method, name), _JSON_LIMIT))
        return await self.ask(method, name, question(scope, body))
