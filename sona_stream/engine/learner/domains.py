"""What was learned before and must not be forgotten: consolidated domains.

A **domain** is one kind of request within one adapter key: the next finer group of its lessons' key chain (for the
key of everything the pattern type, for a type's key the pattern, for a pattern's key the pattern itself). A
consolidation closes the domains whose lessons it learned from; one that was closed before is renewed. Of each are
kept

- the adapter as it was then (M*_k),
- a reservoir R_k of its accepted answers, at most `RESERVOIR` and so many tokens: half of them from before when it
  is renewed,
- how sensitive the policy is on them, for the cheap form of the penalty.

The captures are kept where all captures are, so that what forgets a person, a tenant or an old answer forgets
these, too; the rest is one blob a key. Beyond `MOST` domains a key, the one longest unseen is let go.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import anyio
import numpy as np

from ...lora import Capture, LoraWeights, LowRank, Spectrum
from ...protocols import Store, Writes
from .keys import AdapterKey
from .lessons import Lesson

__all__ = ["MOST", "RESERVOIR", "Domain", "Domains", "domain_of", "reservoir"]

MOST = 8
RESERVOIR = 16
_TOKENS = 1024


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """One that was consolidated."""

    name: str
    version: int
    """that closed it"""
    reference: LoraWeights
    kept: tuple[tuple[Capture, str], ...]
    """(answer, its feedback's id)"""
    outputs: Spectrum
    inputs: Spectrum

    @property
    def captures(self) -> list[Capture]:
        """R_k."""
        return [capture for capture, _ in self.kept]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        spectra = sum(one.vectors.nbytes + one.values.nbytes for one in (self.outputs, self.inputs))
        return self.reference.nbytes + spectra + sum(capture.nbytes for capture in self.captures)


def domain_of(lesson: Lesson, key: AdapterKey) -> str:
    """The domain that a lesson of this key belongs to."""
    at = lesson.groups.index(key.group)
    return lesson.groups[min(at + 1, len(lesson.groups) - 1)]


def reservoir(
    lessons: Sequence[Lesson], before: Sequence[tuple[Capture, str]], seed: int
) -> tuple[tuple[Capture, str], ...]:
    """A random choice of these lessons' answers and, to at most half, of those kept before."""
    rng = np.random.default_rng(seed)
    new = [(one.capture, one.feedback_id) for one in lessons]
    ids = {feedback_id for _, feedback_id in new}
    old = [pair for pair in before if pair[1] not in ids]
    chosen: list[tuple[Capture, str]] = []
    tokens = 0
    pools = [[pool[int(i)] for i in rng.permutation(len(pool))] for pool in (new, old)]
    for place in range(RESERVOIR):
        pool = pools[place % 2] or pools[1 - place % 2]
        if not pool or tokens >= _TOKENS:
            break
        chosen.append(pool.pop())
        tokens += len(chosen[-1][0])
    return tuple(chosen)


class Domains:
    """Of every key, read from the store when first asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[AdapterKey, list[Domain]] = {}

    async def of(self, key: AdapterKey, fingerprint: str) -> list[Domain]:
        """Those closed under this key for this model, the one longest unseen first."""
        if key not in self._known:
            self._known.setdefault(key, await self._read(key, fingerprint))
        return self._known[key]

    async def close(self, key: AdapterKey, fingerprint: str, domain: Domain) -> None:
        """Keeps a domain, in place of the one of its name. Durable when it returns."""
        others = [one for one in await self.of(key, fingerprint) if one.name != domain.name]
        for capture, feedback_id in domain.kept:
            await self._store.put_capture(_place(key, domain.name), capture, 1.0, feedback_id=feedback_id)
        self._known[key] = [*others, domain][-MOST:]
        await self._write(key, fingerprint)

    async def reopen(self, key: AdapterKey, fingerprint: str, version: int, writes: Writes) -> None:
        """Forget what versions after this one closed (after a rollback); durable with `writes`."""
        known = await self.of(key, fingerprint)
        gone = [one for one in known if one.version > version]
        if gone:
            for one in gone:
                writes.drop_captures(key=_place(key, one.name))
            self._known[key] = [one for one in known if one.version <= version]
            writes.put_blob(_blob(key), await self._packed(key, fingerprint))

    def forget(self, model: str) -> None:
        """Its host changed: look again."""
        for key in [key for key in self._known if key.model == model]:
            del self._known[key]

    def let_go(self, root: AdapterKey) -> None:
        """Of what is in the store."""
        for key in self._of_root(root):
            del self._known[key]

    def nbytes(self, root: AdapterKey) -> int:
        """In memory."""
        return sum(one.nbytes for key in self._of_root(root) for one in self._known[key])

    def _of_root(self, root: AdapterKey) -> list[AdapterKey]:
        return [key for key in self._known if key.tenant == root.tenant and key.model == root.model]

    async def _write(self, key: AdapterKey, fingerprint: str) -> None:
        await self._store.put_blob(_blob(key), await self._packed(key, fingerprint))

    async def _packed(self, key: AdapterKey, fingerprint: str) -> bytes:
        return await anyio.to_thread.run_sync(_packed, tuple(self._known[key]), fingerprint)

    async def _read(self, key: AdapterKey, fingerprint: str) -> list[Domain]:
        data = await self._store.get_blob(_blob(key))
        if data is None:
            return []
        found = []
        for domain in await anyio.to_thread.run_sync(_unpacked, data, fingerprint):
            rows = await self._store.captures(_place(key, domain.name), limit=RESERVOIR)
            kept = tuple((capture, id_) for capture, _, id_ in rows if capture.fingerprint == fingerprint)
            if kept:
                found.append(dataclasses.replace(domain, kept=kept))
        return found


def _blob(key: AdapterKey) -> str:
    return f"learner/domains/{key}"


def _place(key: AdapterKey, name: str) -> str:
    """Where the store keeps a domain's captures: beside, not among those of replay."""
    return str(key.at(f"domain:{key.group}:{name}"))


_SPECTRUM = ("vectors", "values")


def _packed(domains: Collection[Domain], fingerprint: str) -> bytes:
    arrays: dict[str, Any] = {}
    rows = []
    for i, one in enumerate(domains):
        row: dict[str, object] = {"name": one.name, "version": one.version}
        for part, pair in (("micro", one.reference.micro), ("base", one.reference.base)):
            if pair is not None:
                arrays |= {f"{i}.{part}_A": pair.lora_A, f"{i}.{part}_B": pair.lora_B}
                row[f"{part}_scaling"] = float(pair.scaling)
        for part, spectrum in (("outputs", one.outputs), ("inputs", one.inputs)):
            arrays |= {f"{i}.{part}_{name}": getattr(spectrum, name) for name in _SPECTRUM}
            row[f"{part}_rest"] = float(spectrum.rest)
        rows.append(row)
    facts = json.dumps({"fingerprint": fingerprint, "domains": rows}).encode()
    file = io.BytesIO()
    np.savez(file, facts=np.frombuffer(facts, np.uint8), **arrays)
    return file.getvalue()


def _unpacked(data: bytes, fingerprint: str) -> list[Domain]:
    """Without captures; none when they are another model's."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        held = dict(file)
    facts = json.loads(held["facts"].tobytes())
    if facts["fingerprint"] != fingerprint:
        return []

    def pair(i: int, part: str, row: Mapping[str, Any]) -> LowRank:
        return LowRank(held[f"{i}.{part}_A"], held[f"{i}.{part}_B"], row[f"{part}_scaling"])

    def spectrum(i: int, part: str, row: Mapping[str, Any]) -> Spectrum:
        return Spectrum(held[f"{i}.{part}_vectors"], held[f"{i}.{part}_values"], row[f"{part}_rest"])

    return [
        Domain(
            row["name"],
            row["version"],
            LoraWeights(pair(i, "micro", row), pair(i, "base", row) if "base_scaling" in row else None),
            (),
            spectrum(i, "outputs", row),
            spectrum(i, "inputs", row),
        )
        for i, row in enumerate(facts["domains"])
    ]
