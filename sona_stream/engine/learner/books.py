"""Whose lessons are in memory, with what was measured on them: within a budget, the rest is in the store."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from ...budgets import Budget
from ...lora import F32
from ...protocols import Store
from ...storing import CaptureHead
from .domains import Domains
from .keys import AdapterKey
from .ledger import Ledger
from .lessons import DEMONSTRATION, Lesson, LessonBook
from .measurements import Measurements

__all__ = ["Books", "clear", "read_book"]

_log = logging.getLogger(__name__)


class Books:
    """By model and tenant (`root`), least recently used first. Whole roots leave, none that is in use; a book comes
    back from the store, and so do domains; scores are measured again.
    """

    def __init__(
        self,
        max_bytes: int,
        measurements: Measurements,
        domains: Domains,
        in_use: Callable[[AdapterKey], bool],
        keep_s: float = math.inf,
    ) -> None:
        """`keep_s`: seconds after which a lesson is forgotten, in memory as in the store."""
        self._keep_s = keep_s
        self._max_bytes, self._measurements, self._domains, self._in_use = max_bytes, measurements, domains, in_use
        self._books: OrderedDict[AdapterKey, LessonBook] = OrderedDict()
        self._sizes: dict[AdapterKey, int] = {}
        self._bytes = self.evictions = 0

    def get(self, root: AdapterKey) -> LessonBook | None:
        """None: it is in the store alone. It counts as used."""
        if root not in self._books:
            return None
        self._books.move_to_end(root)
        self._books[root].expire(self.since)
        return self._books[root]

    @property
    def since(self) -> float:
        """What was kept earlier (`time.time()`) is forgotten."""
        return time.time() - self._keep_s

    def put(self, root: AdapterKey, book: LessonBook) -> LessonBook:
        """Read from the store; the one that is here when another came first."""
        here = self._books.setdefault(root, book)
        self._books.move_to_end(root)
        return here

    def note(self, root: AdapterKey) -> None:
        """There is more of this root now; beyond the budget others make room."""
        book = self._books.get(root)
        size = self._measurements.nbytes(root) + self._domains.nbytes(root) + (0 if book is None else book.nbytes)
        self._bytes += size - self._sizes.get(root, 0)
        self._sizes[root] = size
        for other in list(self._books) if self._bytes > self._max_bytes else ():
            if self._bytes <= self._max_bytes:
                return
            if other != root and not self._in_use(other):
                self._let_go(other)

    def forget(self, model: str) -> None:
        """Its host changed: look again."""
        for root in [root for root in self._sizes if root.model == model]:
            self._bytes -= self._sizes.pop(root)
        for root in [root for root in self._books if root.model == model]:
            del self._books[root]
        self._measurements.forget(model)
        self._domains.forget(model)

    def budget(self) -> Budget:
        """As it is now."""
        held, setting = len(self._books), "sona.learner.replay_mb"
        return Budget("lessons", setting, held, self._bytes, self._max_bytes, self.evictions)

    def _let_go(self, root: AdapterKey) -> None:
        if not self.evictions:
            _log.warning(
                "sona.learner.replay_mb is full: lessons of those who teach nothing now leave memory and are read "
                "from the store when they teach; `sona-stream capacity` tells what fits"
            )
        del self._books[root]
        self._bytes -= self._sizes.pop(root, 0)
        self._measurements.let_go(root)
        self._domains.let_go(root)
        self.evictions += 1


async def read_book(
    store: Store, ledger: Ledger, fingerprint: str, capacity: int, since: float = -math.inf
) -> LessonBook:
    """What the store kept `since` then of the lessons of the ledger's model and tenant: the newest of all, in order
    of time.
    """
    book, root = LessonBook(capacity), ledger.root
    chains = {str(root.at(finest)): groups for finest, groups in ledger.chains.items()}

    def wanted(head: CaptureHead) -> bool:
        known = head.fingerprint == fingerprint and head.stored_at >= since
        return known and ledger.teaches(head, chains[head.key])

    for head, capture, signal in await store.newest_captures(chains, wanted, limit=capacity):
        quality = None if signal == DEMONSTRATION else signal
        question = await _question(store, root, capture.request_id)
        book.add(Lesson(capture, quality, chains[head.key], head.feedback_id, question, head.stored_at))
    return book


async def clear(store: Store, ledger: Ledger, group: str) -> None:
    """Nothing that the store has kept so far teaches this group any more, whether it is in a book or not."""
    keys = [str(ledger.root.at(finest)) for finest, groups in ledger.chains.items() if group in groups]
    newest = await store.newest_captures(keys, lambda head: True, limit=1)
    for head, _, _ in newest:
        ledger.begin_after(group, head.seq)


async def _question(store: Store, root: AdapterKey, captured: str) -> F32 | None:
    """``captured``: a request's id; of what was encoded, that and its own after a ``#``."""
    request_id, tenant = captured.partition("#")[0], root.tenant.partition(":")[0]
    asked = await store.trajectory(request_id, tenant=tenant)
    return None if asked is None else asked.embedding
