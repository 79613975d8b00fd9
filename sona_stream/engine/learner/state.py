"""What both loops of the learner share: hosts, versions, ledgers, lessons, counters."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack

import numpy as np

from ...config.settings import LearningSettings
from ...errors import HostAway, HostError
from ...lora import AdapterRecord, Curvature, LoraWeights
from ...protocols import Embedder, HiddenStateHost, Store, Writes
from .books import Books, clear, read_book
from .domains import Domains, domain_of
from .evidence import Evidence, trust_of
from .ewc import Elastic
from .familiar import Familiar
from .gates import Limits, Verdict, judge, sample
from .initial import initial_weights
from .keys import EVERYTHING, AdapterKey
from .ledger import Ledger, ledger_roots
from .lessons import Lesson, LessonBook, joined
from .line import Line, in_order
from .measurements import Measurements
from .optimiser import Moments, Pace, contracted
from .rates import Mode, Rates
from .refusals import Refusals
from .tenure import answering_since
from .turns import TakingTurns
from .versions import Versions
from .watches import Watches

__all__ = ["State"]

_MB = 1 << 20
_DAY_S = 86400.0

DEFAULT_LR = 1e-3
RATE_PER_LR = 2.0
STRIDE_PER_LR = 100.0
"""At the default rate a step goes a tenth of the way that one step could go."""
LEAST_ANCHOR = 0.02
FEW = 128
"""Lessons at which a fit is pulled to the base model twice as hard as in the end."""
INSTANT_SHARE = 0.25
"""Of the gates' tokens for one bounded step: a refit moves further and is checked on all of them."""

TAUGHT = 0.1
"""Share of recent lessons from which on a domain is being taught and is not held where it was."""


class State:
    """One a learner. Only its event loop touches it."""

    def __init__(
        self,
        hosts: Mapping[str, HiddenStateHost],
        store: Store,
        rates: Rates,
        settings: LearningSettings,
        mode: Mode,
        expected: Collection[str] = (),
        embedder: Embedder | None = None,
        keep_days: float = math.inf,
    ) -> None:
        """``expected``: models that will have a host; what is theirs waits for it. ``embedder``: the requests'.
        ``keep_days``: after which a lesson is forgotten.
        """
        self._given = dict(hosts)
        self.hosts: dict[str, TakingTurns] = {}
        self._ready: set[str] = set()
        """Models whose host serves what was learned"""
        self.expected = {*expected, *hosts}
        self.since: dict[str, float] = {}
        """Model -> when it was first met behind its name (`time.time()`)."""
        self.store, self.rates, self.settings, self.mode = store, rates, settings, mode
        serve_new = mode != "observe"
        self.watches = Watches(settings, store, self._served)
        self.versions = Versions(
            self.hosts,
            store,
            keep=settings.keep_versions,
            older=settings.older_versions,
            serve_new=serve_new,
            watches=self.watches,
            canary=settings.canary,
            max_bytes=settings.adapter_mb * _MB,
        )
        self.ledgers: dict[AdapterKey, Ledger] = {}
        self.measurements = Measurements(store, elsewhere=settings.elsewhere > 0)
        self.domains = Domains(store)
        self.familiar = Familiar(store, embedder, settings.familiar)
        in_use = self.versions.shelf.in_use
        self.books = Books(settings.replay_mb * _MB, self.measurements, self.domains, in_use, keep_days * _DAY_S)
        self.counters: Counter[str] = Counter()
        self.refusals = Refusals()

    @property
    def rate(self) -> float:
        """`micro_lora_lr`; at 0 nothing moves."""
        return self.rates.micro_lora_lr

    def anchor(self, lessons: int) -> float:
        """Weight of the pull to the base model in a fit to so many lessons: what a few say is mostly noise."""
        return self.settings.anchor * (1.0 + FEW / max(lessons, 1))

    def pace(self, curvature: Curvature, evidence: Evidence, lessons: int) -> Pace:
        """How steps are measured in a fit to so many lessons."""
        stride = min(1.0, self.rate * STRIDE_PER_LR) / max(self.anchor(lessons), LEAST_ANCHOR)
        return Pace(curvature, stride, self.rate * RATE_PER_LR, evidence.freedom)

    @property
    def step_kl(self) -> float:
        """Budget of one instant step, nats per token. `LearningSettings.step_kl` is meant at the default rate of
        1e-3; KL grows with the square of a step, so the budget follows `micro_lora_lr` squared.
        """
        return self.settings.step_kl * (self.rates.micro_lora_lr / DEFAULT_LR) ** 2

    async def restore(self) -> None:
        """Serve what was served, and know again what was counted, on every host that was given."""
        await self.versions.thawed()
        for model, host in self._given.items():
            await self.attach(model, host)

    async def attach(self, model: str, host: HiddenStateHost) -> None:
        """The model's host is there, or another one than before: serve on it what was made for it, and know again
        what was counted. Until then the host is away for everybody else, who would begin from nothing.
        """
        since = await answering_since(self.store, model, host.fingerprint)
        async with AsyncExitStack() as stack:
            for line in in_order(self.versions.lines(model)):  # what is under way for the host before ends first
                await stack.enter_async_context(line.lock)
            self.expected.add(model)
            self._ready.discard(model)
            before = self.hosts.get(model)
            if before is None or before.fingerprint != host.fingerprint:
                await self.watches.leave(model)
            self.hosts[model], self.since[model] = TakingTurns(host), since
            self.books.forget(model)
            await self.versions.restore(model)
        for root in await ledger_roots(self.store, model):
            await self.ledger(root)
        for line in self.versions.lines(model):
            await self.ledger(line.key)
            await self.watches.load(line.key)
        self._ready.add(model)

    def host(self, model: str) -> TakingTurns:
        """Raises HostAway while the model's host is still to come, HostError when there will be none."""
        if model in self._ready:
            return self.hosts[model]
        if model in self.expected:
            raise HostAway(f"the hidden states of model {model!r} are not in reach yet")
        raise HostError(f"the hidden states of model {model!r} are out of reach")

    async def ledger(self, key: AdapterKey) -> Ledger:
        """That of the key's model and tenant."""
        root = key.at(EVERYTHING)
        if root not in self.ledgers:
            loaded = await Ledger.load(self.store, root, self.settings.baseline_shrinkage)
            await self.familiar.load(root)
            self.ledgers.setdefault(root, loaded)
        return self.ledgers[root]

    def used(self, key: AdapterKey) -> bool:
        """Whether this level serves: it has been taught enough, and no coarser one knows better."""
        ledger = self.ledgers.get(key.at(EVERYTHING))
        return self.active(key) and (ledger is None or key.group not in ledger.deferring)

    def active(self, key: AdapterKey) -> bool:
        """Whether this level has been taught enough to learn by itself."""
        if key.group == EVERYTHING:
            return True
        ledger = self.ledgers.get(key.at(EVERYTHING))
        return ledger is not None and ledger.counts.get(key.group, 0) >= self.settings.min_feedback

    async def book(self, key: AdapterKey) -> LessonBook:
        """Recent lessons of the key's model and tenant, read back from the store when they are not in memory."""
        root = key.at(EVERYTHING)
        book = self.books.get(root)
        if book is not None:
            return book
        ledger, fingerprint = await self.ledger(root), self.host(root.model).fingerprint
        capacity, since = self.settings.replay_capacity, self.books.since
        book = self.books.put(root, await read_book(self.store, ledger, fingerprint, capacity, since))
        book.forget([one.feedback_id for one in book if ledger.withdrawn(one.feedback_id)])  # while it was read
        return book

    async def remember(self, key: AdapterKey, lesson: Lesson, writes: Writes) -> None:
        """Into the book, and with `writes` into the store. Whole books of other tenants leave memory beyond
        `replay_mb`.
        """
        finest = str(key.at(lesson.groups[-1]))
        writes.put_capture(finest, lesson.capture, lesson.signal, feedback_id=lesson.feedback_id)
        (await self.book(key)).add(lesson)
        self.books.note(key.at(EVERYTHING))

    async def withdraw(self, key: AdapterKey, ids: list[str], writes: Writes, *, everything: bool) -> None:
        """Take these lessons out of replay for good; `everything`: all that the key ever learned from. No replay of
        the key is due by what waited. Durable with `writes`.
        """
        book, ledger = await self.book(key), await self.ledger(key)
        ids = book.ids(key) if everything else ids
        if everything:
            await clear(self.store, ledger, key.group)
        book.forget(ids)
        ledger.withdraw(ids)
        ledger.forget_news(key.group)
        writes.put_blob(*ledger.blob())
        working = self.versions.line(key).working
        served = 0 if working is None else working.version
        await self.domains.reopen(key, self.host(key.model).fingerprint, served, writes)

    async def beginning(self, line: Line, lesson: Lesson) -> tuple[LoraWeights, Moments]:
        """Where the line's next step starts: its own last fit, else its nearest parent's, else birth.

        Moments belong to one key: a child takes its parent's weights and evidence and starts its own moments.
        """
        if line.working is not None and not self.newborn(line):
            return self.fitted(line.working), line.working.moments
        return await self.birth(line, lesson, await self.metric(line.key, lesson))

    def newborn(self, line: Line) -> bool:
        """Whether its next step starts from its parent's fit."""
        return line.working is None or "rms" not in line.working.moments

    async def birth(self, line: Line, lesson: Lesson, curvature: Curvature) -> tuple[LoraWeights, Moments]:
        """A start without the line's own steps: the nearest parent's fit, else an adapter that changes nothing.
        When it was a parent's is durable before there is a version of it. A parent that is to go back is none.
        """
        fresh, ledger = {"rms": np.asarray([curvature.rms], dtype=np.float32)}, await self.ledger(line.key)
        for origin in self._parents(line, lesson):
            async with self.versions.shelf.using(origin, learning=False):
                if origin.working is not None and origin.key.group not in ledger.undone:
                    ledger.born[line.key.group] = time.time()
                    known, start = origin.working.moments, self.fitted(origin.working)
                    await ledger.save(self.store)
                    return start, Evidence.of(known).beside(fresh, trust_of(known))
        layers = await self.host(line.key.model).initial_layers(str(line.key))
        return initial_weights(curvature, self.rates.micro_lora_rank, str(line.key), layers), fresh

    async def curvature(self, key: AdapterKey, lessons: Sequence[Lesson]) -> Curvature:
        """Of the key's model on its tenant's answers, these among them."""
        return await self.measurements.curvature(self.host(key.model), key.at(EVERYTHING), lessons)

    async def metric(self, key: AdapterKey, lesson: Lesson) -> Curvature:
        """The same as it is known, measured only when it is not."""
        return await self.measurements.metric(self.host(key.model), key.at(EVERYTHING), lesson)

    async def elastic(self, key: AdapterKey, lessons: Sequence[Lesson]) -> Elastic | None:
        """What holds the key's adapter on text from elsewhere, and on the domains that these lessons, the newest
        since its last consolidation, do not teach. None: nothing does.
        """
        host, settings = self.host(key.model), self.settings
        elsewhere = await self.measurements.elsewhere(host, key.model)
        known = await self.domains.of(key, host.fingerprint) if self.rates.ewc_lambda else []
        recent = [domain_of(one, key) for one in lessons[-max(self.unfolded(key), 1) :]]
        held = [one for one in known if recent.count(one.name) < TAUGHT * len(recent)]
        if not held and elsewhere is None:
            return None
        factored = settings.ewc_form == "factored" or not host.retains
        tokens = max(1, settings.replay_tokens // (2 * max(len(held), 1)))
        text, pull = elsewhere.domain if elsewhere else None, settings.elsewhere * self.anchor(len(lessons))
        return Elastic(self.rates.ewc_lambda, held, tokens, settings.replay_top_k or None, factored, text, pull)

    def unfolded(self, key: AdapterKey) -> int:
        """Lessons since the key's last consolidation."""
        ledger = self.ledgers.get(key.at(EVERYTHING))
        return 0 if ledger is None else ledger.unfolded.get(key.group, 0)

    @property
    def newest(self) -> int:
        """Lessons of which a replay's version is made, at most: older ones are no longer in replay."""
        return max(self.settings.replay_capacity, self.settings.replay_every)

    async def replayed(self, key: AdapterKey, lessons: int, named: Collection[str], *, stands: bool) -> None:
        """Its replay of so many lessons that waited is done, and its version names these; durable."""
        ledger = await self.ledger(key)
        ledger.replayed(key.group, lessons, named)
        ledger.deferring.discard(key.group)
        if not stands:
            ledger.deferring.add(key.group)
        await ledger.save(self.store)

    async def folded(self, key: AdapterKey) -> None:
        """Its consolidation is done; durable."""
        ledger = await self.ledger(key)
        ledger.unfolded[key.group] = 0
        await ledger.save(self.store)

    def fitted(self, record: AdapterRecord) -> LoraWeights:
        """The fit behind a version, which is the share of it that its evidence supported."""
        return contracted(record.weights, 1.0 / trust_of(record.moments))

    def version(self, fit: LoraWeights, moments: Moments, evidence: Evidence) -> tuple[LoraWeights, Moments]:
        """What is served of a fit, and what is kept beside it so that `fitted` finds the fit again."""
        trust = evidence.trust(self.settings.least_trust)
        return contracted(fit, trust), evidence.beside(moments, trust)

    def _parents(self, line: Line, lesson: Lesson) -> list[Line]:
        """The coarser levels of the lesson's chain, nearest first."""
        coarser = lesson.groups[: lesson.groups.index(line.key.group)]
        return [self.versions.line(line.key.at(group)) for group in reversed(coarser)]

    async def gate(self, key: AdapterKey, weights: LoraWeights, lesson: Lesson | None) -> Verdict:
        """Evaluate `weights` on this lesson and a sample of the tenant's, most of them of this key."""
        book = await self.book(key)
        own = [one for one in book.of(key) if lesson is None or one.answer != lesson.answer]
        others = joined(one for one in book if key.group not in one.groups)
        first = [] if lesson is None else [lesson]
        tokens = int(self.settings.gate_tokens * (INSTANT_SHARE if first else 1.0))
        chosen = [*first, *sample(own, others, self.accepted, tokens)]
        if not chosen:
            return Verdict("no_evidence", "there is no answer to check the version on", {})
        evaluation = await self.host(key.model).evaluate([one.capture for one in chosen], weights)
        accepted, patterns = [self.accepted(one) for one in chosen], [one.groups[-1] for one in chosen]
        return judge(weights, evaluation, accepted, Limits.of(self.settings), patterns)

    def _served(self, key: AdapterKey) -> int:
        ref = self.versions.served(key) if self.used(key) else None
        return 0 if ref is None else ref.version

    def refuse(self, key: AdapterKey, gate: str, reason: str) -> None:
        """Counts a version that is not served, and why."""
        self.counters[f"gated_{gate}"] += 1
        self.refusals.add(key, gate, reason)

    def accepted(self, lesson: Lesson) -> bool:
        """Whether the answer was good enough to be learned towards."""
        return lesson.quality is None or lesson.quality >= self.rates.quality_threshold
