"""What is forgotten of five domains learned one after the other: wikitext2, pubmedqa, legalbench, code_anyio,
shakespeare, and wikitext2 again.

The adapter (micro rank 2, base rank 16) learns 16 segments of 256 tokens of each (`--quick`: 3). Its perplexity on
four other segments of a domain (`--quick`: one), never learned from, is taken right after the domain was learned
and at the end (of wikitext2: when it returns, before it is learned again). Forgetting is the rise between both in
percent, mean over the five.

Who learns nothing forgets nothing. ``compared["learned"]`` is what learning a domain changed of its perplexity,
against the frozen model, mean over the five; ``["per learned"]`` is the forgetting over it, with its sign turned.
`replay` is to forget at most half of what `none` does, and per learned, too; `forgetting.monotone` is 1 if and only
if `ewc0` forgets at least what `ewc500` does, and that at least what `ewc2000` does, in the medians. Arms:

- `none`: steps only, the base pair is never consolidated
- `slow`: `none` at a rate at which it learns about as little as `replay` did: what caution alone would save
- `ewc0`, `ewc500`, `ewc2000`: at the end of each domain the micro pair is folded into the base pair and the domain
  closed with 4 of its segments; these hold later steps with that `ewc_lambda`
- `replay`: `ewc2000`, and with every segment one that an earlier domain kept is learned again

Steps are on the vocabulary cut to each position's 128 likeliest tokens and the labels, as the learner's replay;
perplexities are on all of it. Rates are those of the streams' base16 arm.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from report import Report, Row

from sona_stream.engine.learner.consolidation import empty_base, fold, merged
from sona_stream.engine.learner.domains import Domain, reservoir
from sona_stream.engine.learner.ewc import Elastic
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.engine.learner.lessons import Lesson
from sona_stream.engine.learner.optimiser import (
    Moments,
    Pace,
    base_moved,
    base_step_of,
    micro_cleared,
    moved,
    softened,
    step_of,
    whitening,
)
from sona_stream.lora import Capture, Curvature, LoraWeights, TokenSignal

from .head_host import HeadHost
from .plan import Run
from .segments import FrozenModel
from .stream_text import SHIFT

__all__ = ["ARMS", "Pupil", "add_rows", "rows", "sequence"]

SLOW = 0.2
"""Chosen on seed 0, which learned 5.0 % at it, 4.5 % in `replay` and 8.8 % in `none`."""
MONOTONE = ("ewc0", "ewc500", "ewc2000")


@dataclasses.dataclass(frozen=True)
class Arm:
    """What keeps an adapter from forgetting."""

    consolidates: bool = True
    strength: float = 0.0
    replays: bool = False
    pace: float = 1.0
    """times all rates"""


ARMS = {
    "none": Arm(consolidates=False),
    "slow": Arm(consolidates=False, pace=SLOW),
    "ewc0": Arm(),
    "ewc500": Arm(strength=500.0),
    "ewc2000": Arm(strength=2000.0),
    "replay": Arm(strength=2000.0, replays=True),
}
LEARNED, UNSEEN = 16, 4
QUICK_LEARNED, QUICK_UNSEEN = 3, 1
Told = Mapping[str, Mapping[str, float]]
"""{"forgot" | "learned": {domain: percent}}"""

_RANK, _TOP_K, _TOKENS = 16, 128, 256
_STRIDE, _RATE, _BASE_RATE = 0.05, 0.02, 0.004
_CACHE_BYTES = 1 << 30
"""of base logits, which the arms share: all segments of a quick run"""


class Pupil:
    """One adapter through all domains."""

    def __init__(self, arm: Arm, host: HeadHost, seed: int) -> None:
        self._arm, self._host, self._seed = arm, host, seed
        self._domains: list[Domain] = []
        self._rng = np.random.default_rng(seed)
        self._weights: LoraWeights | None = None
        self._curvature: Curvature | None = None
        self._moments: Moments = {}

    async def learn(self, domain: str, segments: Sequence[Capture]) -> None:
        """One pass, then the domain is closed."""
        found = await self._host.curvature(segments[:4])
        assert found.inputs is not None
        if self._curvature is not None and self._curvature.inputs is not None:
            found = dataclasses.replace(found, inputs=merged(self._curvature.inputs, found.inputs, 0.5))
        self._curvature = found
        if self._weights is None:
            assert self._curvature.inputs is not None
            self._weights = initial_weights(self._curvature, 2, f"seed {self._seed}")
            self._weights = dataclasses.replace(self._weights, base=empty_base(self._curvature.inputs, _RANK))
            self._moments = {"rms": np.asarray([self._curvature.rms], dtype=np.float32)}
        held = [one for one in self._domains if one.name != domain]
        for segment in segments:
            await self._step(segment, held)
            if self._arm.replays and held:
                kept = held[int(self._rng.integers(len(held)))].captures
                await self._step(kept[int(self._rng.integers(len(kept)))], held)
        if self._arm.consolidates:
            await self._close(domain, segments)

    async def _step(self, segment: Capture, held: Sequence[Domain]) -> None:
        weights = self._weights
        assert weights is not None
        assert self._curvature is not None
        assert weights.base is not None
        signal = TokenSignal(weights, [np.ones(len(segment), dtype=np.float32)], top_k=_TOP_K)
        gradient = await self._host.gradient([segment], signal)
        elastic = Elastic(self._arm.strength, held, _TOKENS, _TOP_K)
        gradient = await elastic.added(self._host, gradient, weights, self._rng)
        pace, metric = self._pace(_RATE), self._curvature.outputs
        pace = softened(pace, elastic.stiffness(weights.micro, metric))
        micro, self._moments = step_of(gradient, self._moments, pace)
        white = whitening(weights.base, self._curvature.inputs)
        stiffness = elastic.stiffness(weights.base, metric, white)
        pace = softened(self._pace(_BASE_RATE), stiffness)
        base, self._moments = base_step_of(gradient, weights.base, self._moments, pace)
        self._weights = base_moved(moved(weights, micro), base)

    def _pace(self, rate: float) -> Pace:
        assert self._curvature is not None
        return Pace(self._curvature, _STRIDE * self._arm.pace, rate * self._arm.pace, 1.0)

    async def _close(self, domain: str, segments: Sequence[Capture]) -> None:
        assert self._weights is not None
        assert self._curvature is not None
        lessons = [Lesson(one, None, (domain,), one.request_id) for one in segments]
        kept = reservoir(lessons, (), seed=self._seed)
        found = await self._host.curvature([capture for capture, _ in kept])
        assert found.inputs is not None
        inputs = self._curvature.inputs or found.inputs
        base = fold(self._weights, inputs, _RANK).base
        fresh = initial_weights(self._curvature, 2, f"seed {self._seed} {domain}")
        self._weights, self._moments = LoraWeights(fresh.micro, base), micro_cleared(self._moments)
        others = [one for one in self._domains if one.name != domain]
        self._domains = [*others, Domain(domain, 1, self._weights, kept, found.outputs, found.inputs)]

    async def likelihood(self, segments: Sequence[Capture]) -> tuple[float, float]:
        """Mean log-likelihood per token, and the frozen model's."""
        assert self._weights is not None
        parts = [await self._host.evaluate([one], self._weights) for one in segments]
        own = np.concatenate([part.logprobs[0] for part in parts])
        base = np.concatenate([part.base_logprobs[0] for part in parts])
        return float(np.mean(own)), float(np.mean(base))


def add_rows(report: Report, run: Run) -> None:
    """``forgetting.<arm>``: percent; ``forgetting.monotone``."""
    if run.data is None:
        report.note("forgetting is not measured: --data names no folder")
        rows(report, {})
        return
    torch.set_num_threads(run.threads)
    world = World(FrozenModel(), run.data, quick=run.quick)
    rows(
        report,
        {
            name: [run.kept(f"forgetting.{name}.{seed}", partial(world.measure, name, seed)) for seed in run.seeds]
            for name in ARMS
        },
    )


def rows(report: Report, told: Mapping[str, Sequence[Told]]) -> None:
    """From what was measured of each arm, seed by seed. Arms without a measurement have rows without a value."""
    found = {name: [_Means(one) for one in told.get(name, ())] for name in ARMS}
    middle = {name: _Middle(each) if each else None for name, each in found.items()}
    for name, means in found.items():
        own, forgot = middle[name], [one.forgot for one in means]
        if own is None:
            report.add(Row(f"forgetting.{name}", None, "%", n=0, also=False if name == "replay" else None))
            continue
        spread, compared = (min(forgot), max(forgot)), {"learned": own.learned, "per learned": own.per_learned}
        goal = also = None
        none = middle["none"]
        if name == "replay" and none is not None:
            most = None if none.per_learned is None else none.per_learned / 2
            goal, compared["per learned, at most"] = none.forgot / 2, most
            also = own.per_learned is not None and most is not None and own.per_learned <= most
        report.add(Row(f"forgetting.{name}", own.forgot, "%", spread, len(means), compared, goal, also=also))
    held = [own.forgot for name in MONOTONE if (own := middle[name]) is not None]
    falls = float(held == sorted(held, reverse=True)) if len(held) == len(MONOTONE) else None
    compared = dict(zip(MONOTONE, held, strict=False))
    report.add(
        Row("forgetting.monotone", falls, "", n=len(found[MONOTONE[0]]), compared=compared, goal=1, direction="==")
    )


class _Means:
    """Of one seed over the domains: percent."""

    def __init__(self, told: Told) -> None:
        self.forgot, self.learned = (statistics.mean(told[what].values()) for what in ("forgot", "learned"))


class _Middle:
    """Medians over the seeds. ``per_learned``: None where nothing was learned."""

    def __init__(self, means: Sequence[_Means]) -> None:
        self.forgot = statistics.median(one.forgot for one in means)
        self.learned = statistics.median(one.learned for one in means)
        self.per_learned = -self.forgot / self.learned if self.learned < 0 else None


class World:
    """The texts, read once for all arms when an arm first asks."""

    def __init__(self, model: FrozenModel, data: Path, *, quick: bool) -> None:
        self._model, self._data = model, data
        self._counts = (QUICK_LEARNED, QUICK_UNSEEN) if quick else (LEARNED, UNSEEN)

    def measure(self, arm: str, seed: int) -> Told:
        """Both changes of perplexity, by domain."""
        return asyncio.run(sequence(self._host, ARMS[arm], self._learned, self._unseen, seed))

    @cached_property
    def _host(self) -> HeadHost:
        return HeadHost(self._model.head(), self._model.model.fingerprint, _CACHE_BYTES)

    @cached_property
    def _learned(self) -> dict[str, list[Capture]]:
        return {domain: self._model.segments(domain, self._data, self._counts[0]) for domain in SHIFT}

    @cached_property
    def _unseen(self) -> dict[str, list[Capture]]:
        count = self._counts[1]
        return {domain: self._model.segments(domain, self._data, count, first=LEARNED) for domain in SHIFT}


async def sequence(
    host: HeadHost,
    arm: Arm,
    learned: Mapping[str, Sequence[Capture]],
    unseen: Mapping[str, Sequence[Capture]],
    seed: int,
) -> Told:
    """All domains in order, and the first again."""
    pupil, frozen, after, end = Pupil(arm, host, seed), {}, {}, {}
    for domain in learned:
        await pupil.learn(domain, learned[domain])
        after[domain], frozen[domain] = await pupil.likelihood(unseen[domain])
    first, *others = learned
    end[first], _ = await pupil.likelihood(unseen[first])
    await pupil.learn(first, learned[first])
    for domain in others:
        end[domain], _ = await pupil.likelihood(unseen[domain])
    return {
        "forgot": {domain: _change(after[domain], end[domain]) for domain in learned},
        "learned": {domain: _change(frozen[domain], after[domain]) for domain in learned},
    }


def _change(before: float, after: float) -> float:
    """Of perplexity, percent, from two mean log-likelihoods."""
    return 100.0 * (float(np.exp(before - after)) - 1.0)
