"""What is known of each model's curvature on each tenant's answers, and every answer's score in it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import anyio
import numpy as np

from ...lora import F32, Curvature, Spectrum
from ...protocols import HiddenStateHost, Store
from .baseline import advantages
from .consolidation import merged
from .elsewhere import Elsewhere, elsewhere_of
from .keys import AdapterKey
from .lessons import Lesson, up_to

__all__ = ["Measurements"]

TOKENS = 2048
"""Most tokens that one measurement takes."""


class Measurements:
    """By model and tenant (`root`). The curvature survives a restart; scores are measured again when asked for."""

    def __init__(self, store: Store, *, elsewhere: bool = True) -> None:
        """``elsewhere``: whether the models read a text from elsewhere."""
        self._store, self._reads = store, elsewhere
        self._curvatures: dict[AdapterKey, Curvature] = {}
        self._scores: dict[AdapterKey, dict[str, F32]] = {}
        self._elsewhere: dict[str, Elsewhere | None] = {}

    def forget(self, model: str) -> None:
        """Its host changed."""
        self._elsewhere.pop(model, None)
        for root in [root for root in self._scores if root.model == model]:
            del self._scores[root]
        for root in [root for root in self._curvatures if root.model == model]:
            del self._curvatures[root]

    def let_go(self, root: AdapterKey) -> None:
        """Of what is measured again, or is in the store."""
        self._curvatures.pop(root, None)
        self._scores.pop(root, None)

    def nbytes(self, root: AdapterKey) -> int:
        """In memory."""
        curvature, scores = self._curvatures.get(root), self._scores.get(root, {})
        return (0 if curvature is None else _size(curvature)) + sum(row.nbytes for row in scores.values())

    async def elsewhere(self, host: HiddenStateHost, model: str) -> Elsewhere | None:
        """Read to the model the first time."""
        if not self._reads:
            return None
        if model not in self._elsewhere:
            self._elsewhere[model] = await elsewhere_of(host)
        return self._elsewhere[model]

    async def metric(self, host: HiddenStateHost, root: AdapterKey, lesson: Lesson) -> Curvature:
        """The one known, else one measured on this lesson."""
        known = await self._known(host, root)
        return known if known is not None else await self._measure(host, root, [lesson])

    async def curvature(self, host: HiddenStateHost, root: AdapterKey, lessons: Sequence[Lesson]) -> Curvature:
        """The measurement on most tokens so far, after measuring those of these lessons that have no score: the
        newest first, at most `TOKENS` tokens at once.
        """
        known, scores = await self._known(host, root), self._scores.get(root, {})
        new = up_to((one for one in reversed(lessons) if one.answer not in scores), TOKENS)
        if new:
            return await self._measure(host, root, new)
        return known if known is not None else await self._measure(host, root, lessons[-1:])

    def judged(
        self, root: AdapterKey, lessons: Iterable[Lesson], shrinkage: float
    ) -> tuple[list[Lesson], list[float], list[F32]]:
        """Those of them (one an answer) with a rating and a score, what each is worth beside the others, and its
        score.
        """
        scores = self._scores.get(root, {})
        found = [one for one in lessons if one.quality is not None and one.answer in scores]
        qualities = [one.quality for one in found if one.quality is not None]
        patterns, prompts = [one.groups[-1] for one in found], [one.prompt for one in found]
        values = advantages(qualities, patterns, shrinkage, prompts)
        return found, values, [scores[one.answer] for one in found]

    def keep(self, root: AdapterKey, answers: Collection[str]) -> None:
        """Drop the scores of all other answers."""
        scores = self._scores.get(root, {})
        for gone in [answer for answer in scores if answer not in answers]:
            del scores[gone]

    async def _measure(self, host: HiddenStateHost, root: AdapterKey, lessons: Sequence[Lesson]) -> Curvature:
        elsewhere = await self.elsewhere(host, root.model)
        states = None if elsewhere is None else elsewhere.hidden
        found = await host.curvature([one.capture for one in lessons], states)
        scores = self._scores.setdefault(root, {})
        scores |= {one.answer: row for one, row in zip(lessons, found.scores, strict=True)}
        known = self._curvatures.get(root)
        if known is not None:
            inputs = await anyio.to_thread.run_sync(_running, known, found)
            larger = known if known.tokens > found.tokens else found
            found = dataclasses.replace(larger, inputs=inputs)
            if larger is known and inputs is known.inputs:
                return known
        self._curvatures[root] = found
        await self._store.put_blob(_blob(host, root), _packed(found))
        return found

    async def _known(self, host: HiddenStateHost, root: AdapterKey) -> Curvature | None:
        if root not in self._curvatures:
            kept = await self._store.get_blob(_blob(host, root))
            if kept is None:
                return None
            self._curvatures[root] = _unpacked(kept)
        return self._curvatures[root]


def _blob(host: HiddenStateHost, root: AdapterKey) -> str:
    return f"learner/curvature/{host.fingerprint}/{root}"


def _size(curvature: Curvature) -> int:
    spectra = (one for one in (curvature.outputs, curvature.inputs) if one is not None)
    rows = curvature.constant.nbytes * (1 if curvature.contrast is None else 2)
    return rows + sum(one.vectors.nbytes + one.values.nbytes for one in spectra)


def _running(known: Curvature, found: Curvature) -> Spectrum | None:
    """Of the hidden states, over both measurements; what is older than `TOKENS` tokens fades."""
    if known.inputs is None or found.inputs is None:
        return found.inputs or known.inputs
    return merged(known.inputs, found.inputs, found.tokens / (found.tokens + min(known.tokens, TOKENS)))


def _packed(curvature: Curvature) -> bytes:
    """Without the scores."""
    file, outputs = io.BytesIO(), curvature.outputs
    scalars = np.asarray([curvature.tokens, curvature.rms, outputs.rest], dtype=np.float64)
    arrays: dict[str, Any] = {"constant": curvature.constant, "vectors": outputs.vectors, "values": outputs.values}
    if curvature.contrast is not None:
        arrays["contrast"] = curvature.contrast
    if (inputs := curvature.inputs) is not None:
        arrays |= {"input_vectors": inputs.vectors, "input_values": inputs.values}
        scalars = np.append(scalars, inputs.rest)
    np.savez(file, scalars=scalars, **arrays)
    return file.getvalue()


def _unpacked(data: bytes) -> Curvature:
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        tokens, rms, rest, *more = (float(value) for value in held["scalars"])
        constant, spectrum = held["constant"], Spectrum(held["vectors"], held["values"], rest)
        inputs = Spectrum(held["input_vectors"], held["input_values"], more[0]) if more else None
        contrast = held.get("contrast")
    scores = np.zeros((0, constant.shape[0]), dtype=np.float32)
    return Curvature(int(tokens), rms, constant, spectrum, scores, inputs, contrast)
