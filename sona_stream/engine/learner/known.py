"""What is known of adapter keys: in memory of those used most recently, of the others in the store alone.

Only a key that has versions is kept in the store and read back: what its answers say must not be forgotten while
one of them is on trial. Of the many that have none, a few are held, for what they answered is what a first version
is measured by. What is kept names its model: what another one answered says nothing.
"""

from __future__ import annotations

import io
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar
from zipfile import BadZipFile

import anyio
import numpy as np
from numpy.typing import NDArray

from ...protocols import Store, Writes
from .keys import AdapterKey
from .shelf import less

__all__ = ["Known", "Worth", "packed", "unpacked"]

_log = logging.getLogger(__name__)

_WAITING = 1024
"""Things said of keys that are being read; of more, those that can be spared are left out."""

Arrays = Mapping[str, NDArray[Any]]


class Worth(Protocol):
    """Keeping."""

    changes: int
    """since it was last kept"""

    def to_arrays(self) -> dict[str, NDArray[Any]]: ...


T = TypeVar("T", bound=Worth)


class Known(Generic[T]):
    """Of one kind. Belongs to one event loop."""

    def __init__(
        self,
        kind: str,
        store: Store,
        *,
        most: int,
        new: Callable[[AdapterKey], T],
        read: Callable[[Arrays], T],
        wanted: Callable[[AdapterKey], None],
    ) -> None:
        """``most`` in memory, and half as many of keys without versions. ``wanted``: told of a key that is to be
        read (`load`) before what was said of it counts, or kept (`save`). `tie` it before use.
        """
        self._kind, self._store, self._most = kind, store, most
        self._new, self._read = new, read
        self._wanted = wanted
        self._kept: OrderedDict[AdapterKey, T] = OrderedDict()
        self._bare: OrderedDict[AdapterKey, T] = OrderedDict()
        """Of keys without versions."""
        self._waiting: dict[AdapterKey, list[Callable[[T], object]]] = {}
        self._heard = 0
        self._leaving: set[AdapterKey] = set()
        """To be kept, so that others have room."""
        self._saving: Counter[AdapterKey] = Counter()
        self.evictions = self.unheard = 0

    def tie(
        self,
        versions: Callable[[AdapterKey], bool],
        in_use: Callable[[AdapterKey], bool],
        model: Callable[[AdapterKey], str],
    ) -> None:
        """``versions``: whether a key has any; ``in_use`` ones stay in memory. ``model``: a key's fingerprint, ""
        while nobody knows.
        """
        self.versions, self._in_use, self._model = versions, in_use, model

    @property
    def held(self) -> tuple[int, int]:
        """In memory: of keys with versions, and without."""
        return len(self._kept), len(self._bare)

    def __iter__(self) -> Iterator[tuple[AdapterKey, T]]:
        """Those in memory."""
        yield from self._kept.items()
        yield from self._bare.items()

    def get(self, key: AdapterKey) -> T | None:
        """The key's; None while it is to be read first (`load`)."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if self.versions(key):
            return None
        if key not in self._bare:
            self._bare[key] = self._new(key)
            if len(self._bare) > self._most // 2:
                self._bare.popitem(last=False)
        self._bare.move_to_end(key)
        return self._bare[key]

    def known(self, key: AdapterKey) -> bool:
        """Whether there is anything to know of the key."""
        return key in self._kept or key in self._bare or self.versions(key)

    def tell(self, key: AdapterKey, what: Callable[[T], object], *, spare: bool = False) -> bool:
        """What is to be done with the key's: now (-> True), or as soon as it is read. ``spare``: it may be left out
        when too much waits.
        """
        found = self.get(key)
        if found is not None:
            what(found)
            return True
        self.want(key)
        if spare and self._heard >= _WAITING:
            self.unheard += 1
        else:
            self._waiting[key].append(what)
            self._heard += 1
        return False

    def want(self, key: AdapterKey) -> None:
        """It is to be read."""
        self._waiting.setdefault(key, [])
        self._wanted(key)

    async def heard(self, key: AdapterKey) -> T | None:
        """The key's, if it is in memory or something waits for it. To look so is no use of it."""
        return await self.load(key) if key in self._waiting else self._kept.get(key)

    async def load(self, key: AdapterKey) -> T:
        """The key's, in memory, and what was said of it meanwhile counted. A damaged blob counts as none."""
        if key not in self._kept:
            found = await self._from_store(key)
            if key not in self._kept:  # else somebody else read it meanwhile
                self.put(key, found or self._bare.get(key) or self._new(key))
        one = self.of(key)
        for what in self._waiting.pop(key, ()):
            what(one)
            self._heard -= 1
        return one

    async def recall(self, key: AdapterKey) -> None:
        """As `load`, where something was kept and there is room."""
        if len(self._kept) < self._most and key not in self._kept:
            found = await self._from_store(key)
            if found is not None and key not in self._kept:
                self.put(key, found)

    def put(self, key: AdapterKey, one: T) -> None:
        """In place of what there was."""
        self._bare.pop(key, None)
        self._kept[key] = one
        self._kept.move_to_end(key)
        self.make_room()

    def of(self, key: AdapterKey) -> T:
        """That of a key which was read. Raises LookupError when it was not."""
        if key not in self._kept:
            raise LookupError(f"{self._kind} of adapter {key}: it must be read before it is used")
        return self._kept[key]

    async def save(self, key: AdapterKey, *, least: int = 1) -> None:
        """Durable when it returns, if there are as many changes, or it makes room for others."""
        one, leaving = self._kept.get(key), key in self._leaving
        self._leaving.discard(key)
        if one is not None and self.versions(key) and one.changes >= (1 if leaving else least):
            changes, one.changes = one.changes, 0
            self._saving[key] += 1  # until that is durable it may not leave
            try:
                data = await anyio.to_thread.run_sync(packed, self._named(key, one))
                await self._store.put_blob(self._blob(key), data)
            except BaseException:
                one.changes += changes
                raise
            finally:
                less(self._saving, key)
        if leaving:
            self.make_room()

    def save_with(self, writes: Writes, key: AdapterKey, one: T) -> None:
        """Once `writes` are durable, so is this, which `put` then makes the key's."""
        writes.put_blob(self._blob(key), packed(self._named(key, one)))

    async def save_all(self, model: str | None = None) -> None:
        """Everything that is new, or that of one model."""
        for key in [key for key in self._kept if model in (None, key.model)]:
            await self.save(key)

    def leave(self, model: str) -> None:
        """Nothing of this model is in memory any more."""
        for key in [key for key in (*self._kept, *self._bare, *self._waiting) if key.model == model]:
            self._kept.pop(key, None)
            self._bare.pop(key, None)
            self._leaving.discard(key)
            self._heard -= len(self._waiting.pop(key, ()))

    def make_room(self) -> None:
        """What is in the store already leaves at once, the rest when it was kept (`save`). When that fails for
        long, what was seen is lost.
        """
        excess, far = len(self._kept) - self._most, len(self._kept) > 2 * self._most
        for key in list(self._kept)[:-1] if excess > 0 else ():
            if excess <= 0:
                return
            if self._in_use(key) or key in self._saving:
                continue
            excess -= 1
            if self._kept[key].changes and self.versions(key) and not far:
                self._leaving.add(key)
                self._wanted(key)
            else:
                del self._kept[key]
                self.evictions += 1

    async def _from_store(self, key: AdapterKey) -> T | None:
        data = await self._store.get_blob(self._blob(key))
        if data is None:
            return None
        try:
            held = await anyio.to_thread.run_sync(unpacked, data)
            of, model = str(held.get("model", "")), self._model(key)
            return self._read(held) if of == model or not of or not model else None
        except (ValueError, EOFError, BadZipFile) as error:
            _log.warning("adapter %s: what was watched (%s) cannot be read: %s", key, self._kind, error)
            return None

    def _named(self, key: AdapterKey, one: T) -> dict[str, NDArray[Any]]:
        return {**one.to_arrays(), "model": np.asarray(self._model(key))}

    def _blob(self, key: AdapterKey) -> str:
        return f"learner/{self._kind}/{key}"


def packed(arrays: Arrays) -> bytes:
    """As one file."""
    file = io.BytesIO()
    np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
    return file.getvalue()


def unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """Inverse of `packed`. Raises ValueError, EOFError, BadZipFile for something else."""
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        return dict(held)
