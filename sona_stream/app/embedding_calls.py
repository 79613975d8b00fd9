"""`/v1/embeddings` of the models in `model_list`: the deployments of one are tried as they are for answers. Another
model is never tried: its vectors mean something else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from ..config.settings import WILDCARD
from ..errors import NotFound, SonaError
from ..events import Headers
from ..protocols import Backend
from ..stages import FAILURES, Rota, may_go_elsewhere

__all__ = ["EmbeddingCalls"]

_log = logging.getLogger(__name__)


class EmbeddingCalls:
    """Over all deployments of all models."""

    def __init__(self, backends: Mapping[str, Sequence[Backend]]) -> None:
        self._rotas = {name: Rota(group) for name, group in backends.items()}

    async def ask(self, model: str, body: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
        """(status, headers, body) of the first deployment that answers; the last one's error when none does. Raises
        NotFound for a model that is not there.
        """
        rota = self._rotas.get(model) or self._rotas.get(WILDCARD)
        last: SonaError = NotFound(f"the model {model[:200]!r} does not exist")
        if rota is None:
            raise last
        for index, backend in rota.in_turn():
            try:
                return await backend.embeddings(body, headers)
            except FAILURES as error:
                if not may_go_elsewhere(error):
                    raise
                rota.failed(index)
                last = error
                _log.warning("%s gave no embeddings: %s", model[:200], error)
        raise last
