"""Which requests an adapter is for: those like the ones that were judged, not text from elsewhere.

What a preference was stated on says where it is meant. A logistic regression on the embeddings of requests tells
the judged ones of a tenant from passages of the fixed text (`reference`), both classes weighing the same; a request
that reads like the latter gets the bare model. Questions of other kinds are nearer to the judged ones than a
document or source code is, so a preference still reaches them. Whoever wants it there, too, judges answers there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio
import numpy as np

from ...errors import SonaError
from ...lora import F32
from ...protocols import Embedder, Store
from ...reference import REFERENCE_TEXT
from .keys import AdapterKey

__all__ = ["UNFAMILIAR", "Familiar", "apart", "passages"]

_log = logging.getLogger(__name__)

UNFAMILIAR = "unfamiliar: it reads like text from elsewhere, not like what was judged"

_PASSAGE_WORDS = (8, 16, 32, 64, 128)
"""Requests are of any length."""
_RIDGE = 0.01
_NEWTON_STEPS = 30
_CONVERGED = 1e-6


class Familiar:
    """By model and tenant (`root`): a few hundred numbers each, which survive a restart."""

    def __init__(self, store: Store, embedder: Embedder | None, least: int) -> None:
        """``least``: different judged questions before which every request is familiar; 0: for ever."""
        self._store, self._embedder, self._least = store, embedder, least
        self._boundaries: dict[AdapterKey, F32] = {}
        """(e + 1,), the last one the offset"""
        self._elsewhere: F32 | None = None

    def expects(self, root: AdapterKey, question: F32 | None) -> bool:
        """Whether the adapters of `root` are for this question, an embedding (e,). Takes a microsecond."""
        boundary = self._boundaries.get(root)
        if boundary is None or question is None or not question.any():
            return True
        return float(question @ boundary[:-1] + boundary[-1]) >= 0.0

    async def learn(self, root: AdapterKey, questions: Iterable[F32 | None]) -> None:
        """These were judged; durable."""
        embedder = self._embedder
        if embedder is None or not self._least:
            return
        known = [one for one in questions if one is not None and one.shape == (embedder.dim,) and one.any()]
        if not known:
            return
        judged = np.unique(np.stack(known), axis=0)
        if len(judged) < self._least:
            return
        if self._elsewhere is None:
            try:
                self._elsewhere = await embedder.embed(passages(REFERENCE_TEXT))
            except SonaError as error:  # a server of embeddings that is away now is asked again the next time
                _log.warning("which requests are like the judged ones is not known yet: %s", error)
                return
        self._boundaries[root] = await anyio.to_thread.run_sync(apart, judged, self._elsewhere)
        await self._store.put_blob(self._blob(root), self._boundaries[root].tobytes())

    async def load(self, root: AdapterKey) -> None:
        """As it was learned with this embedder."""
        if self._embedder is None or not self._least:
            return
        kept = await self._store.get_blob(self._blob(root))
        if kept is not None and len(kept) == 4 * (self._embedder.dim + 1):
            self._boundaries[root] = np.frombuffer(kept, np.float32)

    def _blob(self, root: AdapterKey) -> str:
        return f"learner/familiar/{'' if self._embedder is None else self._embedder.name}/{root}"


def passages(text: str) -> list[str]:
    """Pieces of several lengths, each beginning in the middle of the one before."""
    words = text.split()
    return [
        " ".join(words[at : at + size])
        for size in _PASSAGE_WORDS
        for at in range(0, len(words) - size, max(size // 2, _PASSAGE_WORDS[0] // 2))
    ]


def apart(judged: F32, elsewhere: F32) -> F32:
    """(e + 1,) weights and offset of a logistic regression, at least 0 on the side of ``judged`` (n, e); of
    ``elsewhere`` (m, e) the other. Newton's method on the ridge-penalised likelihood.
    """
    rows = np.concatenate([judged, elsewhere]).astype(np.float64)
    rows = np.column_stack([rows, np.ones(len(rows))])
    # The minimum is a sum of rows: however wide the embeddings, there are no more unknowns than rows.
    basis = np.linalg.qr(rows.T)[0] if rows.shape[1] > len(rows) else np.eye(rows.shape[1])
    rows = rows @ basis
    own = np.arange(len(rows)) < len(judged)
    weight = np.where(own, 0.5 / len(judged), 0.5 / len(elsewhere))
    found = np.zeros(rows.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-rows @ found))
        slope = rows.T @ (weight * (chance - own)) + _RIDGE * found
        bend = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + _RIDGE * np.eye(len(found))
        step = np.linalg.solve(bend, slope)
        found -= step
        if np.abs(step).max() < _CONVERGED:
            break
    return np.asarray(basis @ found, np.float32)
