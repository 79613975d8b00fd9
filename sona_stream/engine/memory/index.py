"""Which episodes there are and whose: one table of numbers, in which each visible circle is a linked list.

A circle is who may see an episode: (model, fingerprint, a person of a tenant | a tenant | all). Its episodes are
chained, so that a search reads the rows of the asker's own circles and of nobody else's, and an asker without any
pays two look-ups in a dictionary. About a third of a KB an episode; see `nbytes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...episodes import EpisodeEntry, Place, Scope, Viewer
from ...kernels import Kernels
from .encoding import Codes

__all__ = ["EpisodeIndex", "Found", "circle_of"]

_SCOPES: tuple[Scope, ...] = ("person", "tenant", "global")
_GROWTH = 1024
_ROW = np.dtype(
    [
        ("number", "<i8"),
        ("rank", "<i8"),
        ("stamp", "<i8"),
        ("offset", "<i8"),
        ("standing", "<f8"),
        ("circle", "<i4"),
        ("tenant", "<i4"),
        ("fingerprint", "<i4"),
        ("segment", "<i4"),
        ("length", "<i4"),
        ("previous", "<i4"),
        ("scope", "i1"),
        ("correction", "?"),
        ("active", "?"),
    ]
)


class Found(NamedTuple):
    """What a search brought: slots of the table, best first."""

    slots: NDArray[np.int64]
    cosines: NDArray[np.float32]


def circle_of(model: str, fingerprint: str, scope: Scope, tenant: str, person: str) -> bytes:
    """Name of the circle that an episode of this scope belongs to."""
    who = {"person": (tenant, person), "tenant": (tenant,), "global": ()}[scope]
    data = repr((model, fingerprint, scope, *who)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()


class EpisodeIndex:
    """Slots are reused; a number is for ever. Not thread-safe."""

    def __init__(self, kernels: Kernels, dim: int) -> None:
        self._kernels = kernels
        self.dim = dim
        self._codes = np.zeros((0, dim), np.int8)
        self._inverse = np.zeros(0, np.float32)
        self._following = np.zeros(0, np.int32)
        self.rows = np.zeros(0, _ROW)
        self._free: list[int] = []
        self._end = 0
        self._circles: dict[bytes, int] = {}
        self._names: list[bytes] = []
        self._heads: list[int] = []
        self._members: list[int] = []
        """Episodes of each circle, superseded ones included"""
        self._free_circles: list[int] = []
        self._tenants: dict[str, int] = {}
        self._counts: list[int] = []
        self._bytes: list[int] = []
        self._fingerprints: dict[str, int] = {}
        self._globals = 0

    def __len__(self) -> int:
        return self._end - len(self._free)

    @property
    def nbytes(self) -> int:
        """Of arrays; and an estimate of 200 bytes a circle."""
        arrays = self._codes.nbytes + self._inverse.nbytes + self._following.nbytes + self.rows.nbytes
        return arrays + 200 * len(self._circles)

    # -- asking -----------------------------------------------------------------------------------------------

    def holds(self, viewer: Viewer) -> bool:
        """Whether there is anything to search for this viewer."""
        tenant = self._tenants.get(viewer.tenant)
        if not self._globals and (tenant is None or not self._counts[tenant]):
            return False
        return bool(self._visible(viewer))

    def search(self, viewer: Viewer, query: Codes, *, least: float, most: int) -> Found:
        """The `most` nearest that this viewer may see, with a cosine of at least `least`."""
        parts = [
            self._kernels.nearest_in_list(
                self._codes, self._inverse, self._following, head, query.values, query.inverse, least, most
            )
            for head in self._visible(viewer)
        ]
        if not parts:
            return Found(np.zeros(0, np.int64), np.zeros(0, np.float32))
        slots, cosines = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(-cosines, kind="stable")[:most]
        return Found(slots[order], cosines[order])

    def in_circle(self, circle: bytes, query: Codes, *, least: float, most: int) -> Found:
        """The same of one circle."""
        known = self._circles.get(circle)
        head = -1 if known is None else self._heads[known]
        return Found(
            *self._kernels.nearest_in_list(
                self._codes, self._inverse, self._following, head, query.values, query.inverse, least, most
            )
        )

    def _visible(self, viewer: Viewer) -> list[int]:
        """First slots of the viewer's circles, the narrowest first."""
        heads = []
        for scope in _SCOPES:
            name = circle_of(viewer.model, viewer.fingerprint, scope, viewer.tenant, viewer.person)
            circle = self._circles.get(name)
            if circle is not None and self._heads[circle] >= 0:
                heads.append(self._heads[circle])
        return heads

    def slot_of(self, number: int) -> int | None:
        """None when it is not here."""
        found = np.flatnonzero(self.rows["number"][: self._end] == number)
        return int(found[0]) if len(found) else None

    def number(self, slot: int) -> int:
        """Of the episode there; 0 for a free slot."""
        return int(self.rows["number"][slot])

    def codes(self, slot: int) -> Codes:
        """Of its static vector."""
        return Codes(self._codes[slot], float(self._inverse[slot]))

    def place(self, slot: int) -> Place:
        """Where the episode's bytes are."""
        row = self.rows[slot]
        return Place(int(row["segment"]), int(row["offset"]), int(row["length"]), int(row["stamp"]))

    def scope(self, slot: int) -> Scope:
        """Who may see it."""
        return _SCOPES[int(self.rows["scope"][slot])]

    def fingerprint(self, slot: int) -> str:
        """Of the model whose states these are."""
        return list(self._fingerprints)[int(self.rows["fingerprint"][slot])]

    def fingerprints(self) -> list[str]:
        """Of all models that episodes were made for."""
        return list(self._fingerprints)

    def usage(self, tenant: str) -> tuple[int, int]:
        """Episodes and bytes of a tenant."""
        known = self._tenants.get(tenant)
        return (0, 0) if known is None else (self._counts[known], self._bytes[known])

    def total_bytes(self) -> int:
        """Of all tenants' episodes."""
        return sum(self._bytes)

    def tenants(self) -> list[str]:
        """Those with episodes, the one with the most first."""
        return sorted((t for t, i in self._tenants.items() if self._counts[i]), key=lambda t: -self.usage(t)[0])

    def least_useful(self, tenant: str) -> list[tuple[int, int]]:
        """(number, bytes) of all of the tenant's, what is worth least first: superseded ones before all others, and
        accepted answers before corrections.
        """
        rows = self.rows[: self._end]
        some = rows[(rows["number"] > 0) & (rows["tenant"] == self._tenants.get(tenant, -1))]
        some = some[np.lexsort((some["rank"], some["standing"], some["correction"], some["active"]))]
        return list(zip(some["number"].tolist(), some["length"].tolist(), strict=True))

    # -- changing ---------------------------------------------------------------------------------------------

    def add(self, entry: EpisodeEntry) -> int:
        """-> its slot."""
        slot = self._take_slot()
        codes = np.frombuffer(entry.static, np.int8)
        wide = codes.astype(np.int32)
        square = float(wide @ wide)
        self._codes[slot] = codes
        self._inverse[slot] = 1.0 / square**0.5 if square > 0 else 0.0
        tenant = self._tenant(entry.tenant)
        row = self.rows[slot]
        row["number"], row["standing"] = entry.number, entry.standing
        row["tenant"], row["correction"] = tenant, entry.kind == "correction"
        row["active"] = False
        row["fingerprint"] = self._fingerprints.setdefault(entry.fingerprint, len(self._fingerprints))
        self.set_place(slot, entry.place)
        self._counts[tenant] += 1
        self._bytes[tenant] += entry.place.length
        self._put(slot, entry)
        return slot

    def move(self, slot: int, entry: EpisodeEntry) -> None:
        """The episode has another scope and rank now, or is current again."""
        self._unlink(slot)
        self._leave(slot)
        self._put(slot, entry)

    def supersede(self, slot: int) -> None:
        """No search finds it any more."""
        self._unlink(slot)

    def set_place(self, slot: int, place: Place) -> None:
        """Its bytes are elsewhere now."""
        row = self.rows[slot]
        row["segment"], row["offset"], row["length"], row["stamp"] = place

    def remove(self, numbers: Iterable[int]) -> list[tuple[int, int]]:
        """-> (number, stamp) of those that were here."""
        gone = []
        wanted = np.fromiter(numbers, np.int64)
        for slot in np.flatnonzero(np.isin(self.rows["number"][: self._end], wanted[wanted > 0])).tolist():
            row = self.rows[slot]
            gone.append((int(row["number"]), int(row["stamp"])))
            self._unlink(slot)
            self._leave(slot)
            tenant = int(row["tenant"])
            self._counts[tenant] -= 1
            self._bytes[tenant] -= int(row["length"])
            row["number"] = 0
            self._free.append(slot)
        return gone

    def _put(self, slot: int, entry: EpisodeEntry) -> None:
        row = self.rows[slot]
        row["rank"], row["scope"] = entry.rank, _SCOPES.index(entry.scope)
        row["circle"] = self._circle(
            circle_of(entry.model, entry.fingerprint, entry.scope, entry.tenant, entry.person)
        )
        self._members[int(row["circle"])] += 1
        self._globals += entry.scope == "global"
        if entry.superseded_by is None:
            self._link(slot)

    def _leave(self, slot: int) -> None:
        """After `_unlink`: the circle goes with its last episode."""
        row = self.rows[slot]
        circle = int(row["circle"])
        self._globals -= int(row["scope"]) == _SCOPES.index("global")
        self._members[circle] -= 1
        if not self._members[circle]:
            del self._circles[self._names[circle]]
            self._names[circle] = b""
            self._free_circles.append(circle)

    def _link(self, slot: int) -> None:
        circle = int(self.rows["circle"][slot])
        head = self._heads[circle]
        self._following[slot], self.rows["previous"][slot] = head, -1
        if head >= 0:
            self.rows["previous"][head] = slot
        self._heads[circle] = slot
        self.rows["active"][slot] = True

    def _unlink(self, slot: int) -> None:
        row = self.rows[slot]
        if not row["active"]:
            return
        previous, following = int(row["previous"]), int(self._following[slot])
        if previous >= 0:
            self._following[previous] = following
        else:
            self._heads[int(row["circle"])] = following
        if following >= 0:
            self.rows["previous"][following] = previous
        row["active"] = False

    def _take_slot(self) -> int:
        if self._free:
            return self._free.pop()
        if self._end == len(self.rows):
            self.reserve(self._end + max(_GROWTH, self._end // 16))
        self._end += 1
        return self._end - 1

    def reserve(self, slots: int) -> None:
        """Room for this many in all."""
        if slots > len(self.rows):
            more = slots - len(self.rows)
            self._codes = np.concatenate((self._codes, np.zeros((more, self.dim), np.int8)))
            self._inverse = np.concatenate((self._inverse, np.zeros(more, np.float32)))
            self._following = np.concatenate((self._following, np.full(more, -1, np.int32)))
            self.rows = np.concatenate((self.rows, np.zeros(more, _ROW)))

    def _circle(self, name: bytes) -> int:
        known = self._circles.get(name)
        if known is not None:
            return known
        if self._free_circles:
            circle = self._free_circles.pop()
            self._names[circle], self._heads[circle] = name, -1
        else:
            circle = len(self._names)
            self._names.append(name)
            self._heads.append(-1)
            self._members.append(0)
        self._circles[name] = circle
        return circle

    def _tenant(self, name: str) -> int:
        if name not in self._tenants:
            self._tenants[name] = len(self._counts)
            self._counts.append(0)
            self._bytes.append(0)
        return self._tenants[name]
