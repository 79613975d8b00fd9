"""The slow half of learning: the micro pair is folded into the base pair, which then takes steps of its own.

A cycle of one key:

1. **Consolidate** (see `consolidation`): both pairs become the base pair of rank `base_lora_rank`; the micro pair
   starts anew, its moments cleared. What the cut changed is in the version's metrics (``fold_error``, the share of
   the output that is lost, and ``fold_kl``, nats per token).
2. **Slow steps** over the accepted answers in replay, of the base pair, paced by `base_lora_lr`.
3. **Close the domains** that were taught since the last cycle (see `domains`): from now on `ewc` holds them.

1 and 2 are versions of their own and pass the same gates as any. What instant steps learn meanwhile stays: they
move the micro pair, slow steps the base pair. A crash costs the step it came in; the ledger knows what is still
due.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence

import anyio

from ...lora import AdapterRecord, Curvature, LoraWeights
from .consolidation import fold
from .domains import Domain, domain_of, reservoir
from .evidence import Evidence
from .gates import Verdict
from .initial import initial_weights
from .keys import AdapterKey
from .lessons import Lesson, up_to
from .optimiser import Pace, micro_cleared, shifted
from .replay import Plan, fit, weigh
from .state import State
from .versions import Line

__all__ = ["Cycle"]

_log = logging.getLogger(__name__)

STRIDE_PER_LR, RATE_PER_LR = 500.0, 40.0
"""At the default `base_lora_lr` of 1e-4 a step goes a twentieth of the way that one step could go."""
_SUPPORT = 0.5
"""Share of a fit that evidence must support before it is consolidated unasked."""
_DOMAIN = 4
"""Accepted answers below which a domain is not closed."""
_SHARES = (1.0, 0.5, 0.25)


class Cycle:
    """Consolidation and slow steps of one key at a time."""

    def __init__(self, state: State) -> None:
        self._state = state

    def due(self, *, forced: bool = False) -> list[AdapterKey]:
        """Keys that were taught enough since their last cycle; forced: at all."""
        least = 1 if forced else self._state.settings.consolidate_every
        return [
            line.key
            for line in self._state.versions.lines()
            if line.working is not None and self._state.unfolded(line.key) >= least
        ]

    async def run(self, key: AdapterKey, plan: Plan, *, forced: bool) -> list[AdapterRecord]:
        """The versions that came of it."""
        state = self._state
        ledger, book = await state.ledger(key), await state.book(key)
        lessons, line = book.of(key), state.versions.line(key)
        off = state.mode == "off" or state.rate == 0 or state.rates.base_lora_lr == 0 or state.versions.frozen
        if off or line.working is None or not lessons:
            return []
        if not forced and Evidence.of(line.working.moments).freedom < _SUPPORT:
            state.counters["consolidations_unsupported"] += 1
            return []
        ledger.taken[key.group] = time.time()
        await ledger.save(state.store)
        curvature = await state.curvature(key, lessons)
        folded = await self._consolidate(line, curvature, lessons)
        if folded is None:
            return []
        stepped = await self._step(line, curvature, lessons, plan)
        await self._close(line, lessons)
        return [folded] if stepped is None else [folded, stepped]

    async def _consolidate(
        self, line: Line, curvature: Curvature, lessons: Sequence[Lesson]
    ) -> AdapterRecord | None:
        state, key = self._state, line.key
        inputs, host = curvature.inputs, state.host(key.model)
        if inputs is None:
            state.refuse(key, "no_inputs", "the host does not say what its hidden states are like")
            return None
        async with line.lock:
            before = line.working
            if before is None or state.versions.frozen:
                return None
            fitted = state.fitted(before)
            done = await anyio.to_thread.run_sync(fold, fitted, inputs, state.rates.base_lora_rank)
            fresh = initial_weights(curvature, state.rates.micro_lora_rank, f"{key}@{line.latest}")
            evidence = Evidence.of(before.moments)
            whole = LoraWeights(fresh.micro, done.base, fitted.layers)
            served, kept = state.version(whole, micro_cleared(before.moments), evidence)
            verdict = await state.gate(key, served, None)
            if not verdict.ok:
                state.refuse(key, verdict.gate, f"consolidation: {verdict.reason}")
                return None
            sample = [one.capture for one in up_to(reversed(lessons), state.settings.gate_tokens)]
            metrics = {
                **verdict.metrics,
                "fold_error": done.error,
                "fold_kl": await host.predicted_kl(sample, before.weights, served),
                "fold_rank": float(done.rank),
            }
            state.counters["consolidations"] += 1
            record = state.versions.next(line, served, kept, reason="consolidate", metrics=metrics, feedback_ids=())
            return await state.versions.publish(line, record)

    async def _step(
        self, line: Line, curvature: Curvature, lessons: Sequence[Lesson], plan: Plan
    ) -> AdapterRecord | None:
        """Steps of the base pair beside the instant loop, added to what is there when they are done."""
        state, before = self._state, line.working
        weighed = [one for one in weigh(lessons, plan) if one.advantage > 0]
        if before is None or not weighed or plan.steps == 0:
            return None
        epoch, start, evidence = line.epoch, state.fitted(before), Evidence.of(before.moments)
        by = state.rates.base_lora_lr
        pace = Pace(curvature, min(1.0, by * STRIDE_PER_LR), by * RATE_PER_LR, evidence.freedom)
        elastic = await state.elastic(line.key, lessons)
        host = state.host(line.key.model)
        result = await fit(
            host, weighed, start, before.moments, plan, pace, seed=line.latest, slow=True, elastic=elastic
        )
        async with line.lock:
            now = line.working
            if line.epoch != epoch or now is None or now.weights.base is None or state.versions.frozen:
                return None
            verdict = Verdict("", "", {})
            for share in _SHARES:
                whole = shifted(start, result.weights, state.fitted(now), share)
                moments = {**now.moments, **{n: v for n, v in result.moments.items() if n.startswith("base_")}}
                served, kept = state.version(whole, moments, Evidence.of(now.moments))
                verdict = await state.gate(line.key, served, None)
                if verdict.ok:
                    state.counters["slow_steps"] += result.steps
                    metrics = {**verdict.metrics, "share": share, "steps": float(result.steps)}
                    record = state.versions.next(
                        line, served, kept, reason="background", metrics=metrics, feedback_ids=()
                    )
                    return await state.versions.publish(line, record)
            state.refuse(line.key, verdict.gate, f"slow steps: {verdict.reason}")
            return None

    async def _close(self, line: Line, lessons: Sequence[Lesson]) -> None:
        """The domains taught since the last cycle, as the key's adapter is now; and the cycle is over."""
        state, key = self._state, line.key
        host, taught = state.host(key.model), defaultdict(list)
        for lesson in lessons[-max(state.unfolded(key), 1) :]:
            if state.accepted(lesson):
                taught[domain_of(lesson, key)].append(lesson)
        known = {one.name: one for one in await state.domains.of(key, host.fingerprint)}
        for name, own in taught.items():
            if len(own) < _DOMAIN or line.working is None:
                continue
            version, reference = line.working.version, state.fitted(line.working)
            kept = reservoir(own, known[name].kept if name in known else (), seed=version)
            found = await host.curvature([capture for capture, _ in kept])
            if found.inputs is not None:
                domain = Domain(name, version, reference, kept, found.outputs, found.inputs)
                await state.domains.close(key, host.fingerprint, domain)
        await state.folded(key)
