"""What happens in a step, whichever runner vLLM uses: rows are adapted before the lm_head, mixed after it, and
captured. Knows tensors and names, no vLLM class.

Every body disables the hook on any exception and lets the step pass through: the server never dies because of it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..episodes import RECENT, START, UNKNOWN, EpisodeStore, Mixture, mix, newest
from .adapters import AdapterTable
from .adapting import adapt
from .captures import CaptureStore
from .counters import Counters
from .native import NativeSteps
from .plan import Captured, Mixed, Plan, Planner
from .requests import Requests, Tracked, binding_from
from .ring import CaptureRing
from .settings import PluginSettings
from .staging import Scored, States, own
from .unserved import PASSED_BY, Unserved

__all__ = ["Hook", "Layout"]

logger = logging.getLogger("sona_stream.vllm_plugin")

Logits = torch.Tensor | None

_AWAY = "its adapter was not there when it was answered: SONA_VLLM_ADAPTER_MB bounds how many there are"


class Layout(NamedTuple):
    """Whose rows a step's logits are."""

    request_ids: Sequence[str]
    """in the batch's order"""
    counts: Sequence[int] | None = None
    """their numbers of rows; None: one each"""
    drafts_of: Callable[[int, int], torch.Tensor] | None = None
    """(place in the batch, n) -> (n,) whole numbers on the device: the drafts that the request's last n rows were
    given, below 0 where there was none; None: they are not known"""


@dataclasses.dataclass(slots=True, eq=False)
class _Pending:
    """Between the logits and the tokens drawn from them."""

    captured: Captured
    first: int
    """row in the ring"""
    states: States | None
    """None: the ring has them"""
    owned: bool
    """the states are the step's own, not copies of a part of a buffer"""
    logits: torch.Tensor | None = None
    """(m, V) copy of those rows whose log-probabilities must be taken now; the sampler writes to its own"""
    mixed: list[tuple[list[int], Mixture]] = dataclasses.field(default_factory=list)
    """rows of the step, and what became of them"""


class Hook:
    """One worker's. `begin`, then `compute_logits` around the original, then `sampled`."""

    def __init__(
        self,
        settings: PluginSettings,
        counters: Counters,
        table: AdapterTable,
        episodes: EpisodeStore,
        ring: CaptureRing,
        captures: CaptureStore,
        device: torch.device,
    ) -> None:
        self.counters = counters
        self.requests = Requests(table, counters)
        self.unserved = Unserved()
        limit = settings.max_delta
        native = NativeSteps.find(device, ring.dtype, ring.hidden_dim, limit, ring.addresses)
        self.planner = Planner(table, episodes, limit, device, longest=ring.capacity, native=native)
        self._settings, self._table, self._ring, self._captures = settings, table, ring, captures
        self.armed: Callable[[], Layout] | None = None
        """set while the next logits are those that tokens are drawn from: says whose rows they are. Any later ones
        are not touched."""
        self._pending: _Pending | None = None
        self._mixed: Sequence[Mixed] = ()
        """whose tokens are drawn from this step's mixtures"""
        self._cut = 0
        self._capped = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def capped_rows(self) -> int:
        """Rows whose change was cut to the norm cap. Waits for the device."""
        return self._cut + int(self._capped)

    def fail(self, where: str, error: Exception) -> None:
        """Pass everything through from now on, and say why."""
        self.counters.errors += 1
        self.counters.disabled = f"{where}: {type(error).__name__}: {error}"
        logger.exception("sona: the hook disabled itself in %s; answers go on without adapters", where)
        self.give_up(f"the hook failed while it was being answered ({self.counters.disabled})")

    def give_up(self, reason: str) -> None:
        """Who is being answered now goes on without us; what had ended is kept."""
        self.armed = self._pending = None
        self._mixed = ()
        ended, self.requests.finished[:] = list(self.requests.finished), []
        self._captures.finish(ended)
        for tracked in self.requests.live.values():
            if tracked.binding.rid is not None:
                self.unserved.note(tracked.binding.rid, reason)
        self.requests.end_all()

    def pass_by(self, scheduled: Any) -> None:
        """A step starts while the hook is off: who comes is served without it."""
        for new in scheduled.scheduled_new_reqs:
            binding = None if new.sampling_params is None else binding_from(new.sampling_params.extra_args)
            if binding is not None and binding.rid is not None:
                reason = f"{PASSED_BY} ({self.counters.disabled})"
                self.unserved.note(binding.rid, reason)

    def begin(self, scheduled: Any) -> None:
        """A step starts: who came, who left."""
        self.counters.steps += 1
        self.armed = self._pending = None
        self._mixed = ()
        self.requests.follow(scheduled)
        if not self.requests.live:
            self.planner.forget()  # it holds what ended answers drew on
        if self.requests.finished:
            self._captures.finish(self.requests.finished)
            self.requests.finished.clear()

    def compute_logits(
        self, original: Callable[..., Logits], hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Logits:
        """In place of the model's own."""
        armed = self.armed
        if armed is None or self.counters.disabled:
            return original(hidden_states, *args, **kwargs)
        self.armed = plan = layout = None
        changed = hidden_states
        try:
            layout = armed()
            plan = self.planner.plan(
                self.requests.live, layout.request_ids, layout.counts, changed=self.requests.changed
            )
            self.requests.changed = False
            if plan.rows == hidden_states.size(0):
                changed = self._change(plan, hidden_states)
            else:
                plan = None
                self.counters.mismatch += 1
        except Exception as error:
            self.fail("hidden states", error)
            changed, plan = hidden_states, None
        logits = original(changed, *args, **kwargs)
        if logits is None:
            self._pending = None
        elif plan is not None and layout is not None and plan.reads_logits:
            try:
                self._after(plan, layout, hidden_states, logits)
            except Exception as error:
                self.fail("logits", error)
        return logits

    def _change(self, plan: Plan, hidden: torch.Tensor) -> torch.Tensor:
        """What the lm_head is given. What has to be captured is kept; its tokens are still to come."""
        counters, captured, native = self.counters, plan.captured, plan.native
        first = 0 if captured is None else self._ring.reserve(captured.count)
        if native is not None:
            cut = native.run(hidden, first % self._ring.capacity)
            if cut < 0:
                return self._without_native(plan, hidden)
            if captured is not None:
                self._pending = _Pending(captured, first, None, True)
            changed = hidden if native.changed is None else native.changed
            self._cut += cut
        else:
            changed = self._change_by_torch(plan, hidden, first)
        counters.adapted_rows += plan.served
        if plan.missing or plan.lost:
            counters.missing_rows += plan.missing
            for rid in plan.away:
                self.unserved.note(rid, _AWAY)
            counters.lost_rows += plan.lost
        return changed

    def _change_by_torch(self, plan: Plan, hidden: torch.Tensor, first: int) -> torch.Tensor:
        changed, capped, captured = hidden, None, plan.captured
        if plan.adapted is not None:
            changed, capped = adapt(hidden, plan.adapted, self._settings.max_delta)
            if capped is not None:
                self._capped += capped.sum()
        if captured is not None:
            kept = hidden if captured.owned else own(hidden)
            states = States(kept, None if changed is hidden else changed, capped)
            self._pending = _Pending(captured, first, states, kept is hidden)
        return changed

    def _without_native(self, plan: Plan, hidden: torch.Tensor) -> torch.Tensor:
        """Again by torch: states of this runner do not lie as the kernel reads them, and will not."""
        self.planner.native = None
        return self._change(self.planner.again(self.requests.live), hidden)

    def _after(self, plan: Plan, layout: Layout, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        """Where episodes are mixed in, or the logits say what cannot be asked later."""
        pending, self._mixed = self._pending, plan.mixed
        for one in plan.mixed:
            mixture = mix(
                logits[one.rows],
                hidden[one.rows],
                one.episodes,
                share=self._settings.episode_share,
                threshold=self._settings.episode_threshold,
                recent=_recent(one, layout, logits.device),
            )
            mixture.write(logits, one.rows)
            self.counters.mixed_rows += len(one.places)
            if pending is not None:
                pending.mixed.append((one.places, mixture))
        if pending is not None and pending.captured.now_rows is not None:
            pending.logits = logits.index_select(0, pending.captured.now_rows)

    def sampled(self, token_ids: torch.Tensor, accepted: torch.Tensor | None = None) -> None:
        """`token_ids` (requests, k), below 0 where a draft was rejected; `accepted` (requests,): how many of each
        row's are tokens, where the runner says so. The caller fails the hook on an exception.
        """
        for one in self._mixed:
            tracked = one.tracked
            if tracked.settled and tracked.said is not None:
                some = None if accepted is None else accepted[one.index]
                tracked.said = newest(tracked.said, token_ids[one.index], some)
                tracked.said_after = tracked.draws
        self._mixed = ()
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        captured, ids = pending.captured, token_ids
        if not captured.owned:
            ids = own(token_ids)
            captured.owned = pending.owned and ids is token_ids
        accepted = None if accepted is None else accepted.clone()
        scored = None if pending.logits is None else _scored(pending, token_ids)
        self._ring.stage(captured, pending.first, ids, accepted, pending.states, scored)
        self.counters.captured_tokens += captured.count

    def read_prompts(self, hidden: torch.Tensor, offset_of: Callable[[str], int | None]) -> None:
        """Teacher forcing: `hidden` (tokens of the step, d) of all requests; `offset_of` says where one's begin."""
        for tracked in self.requests.live.values() if self.requests.teaching else ():
            if tracked.binding.teach is not None and tracked.chunk is not None:
                offset = offset_of(tracked.request_id)
                if offset is not None:
                    self._read_prompt(tracked, hidden, offset)
                tracked.chunk = None

    def _read_prompt(self, tracked: Tracked, hidden: torch.Tensor, offset: int) -> None:
        assert tracked.chunk is not None
        computed, tokens = tracked.chunk
        start = tracked.taught_next
        stop = min(computed + tokens, len(tracked.prompt_ids) - 1)
        if not computed <= start < stop:
            return  # nothing of the answer in this chunk, or states that a prefix cache spared
        tracked.taught.append(hidden[offset + start - computed : offset + stop - computed].clone())
        tracked.taught_next = stop
        self.counters.captured_tokens += stop - start
        binding = tracked.binding
        adapter = None if binding.key is None else self._table.find(binding.key, binding.version)
        tracked.taught_by = None if adapter is None else (adapter.A, adapter.B, adapter.version)


def _recent(one: Mixed, layout: Layout, device: torch.device) -> torch.Tensor:
    """(m, RECENT) int64: what the answer says last where each of the request's rows begins, drafts included."""
    tracked, drafts = one.tracked, len(one.places) - 1
    if not tracked.settled:  # chunks of a prompt: what they would say is not looked at
        return torch.full((1 + drafts, RECENT), UNKNOWN, device=device)
    if tracked.said is None or tracked.said_after != tracked.draws - 1:
        # Nothing was drawn yet, or tokens were that nobody told us: its episode was away, or the step passed by.
        before = START if tracked.draws == 1 else UNKNOWN
        tracked.said, tracked.said_after = torch.full((RECENT,), before, device=device), tracked.draws - 1
    if not drafts:
        return tracked.said[None]
    if layout.drafts_of is None:
        ids = torch.full((drafts,), UNKNOWN, device=device)
    else:
        ids = layout.drafts_of(one.index, drafts).long()
        ids = torch.where(ids < 0, UNKNOWN, ids)
    return torch.cat([tracked.said, ids]).unfold(0, RECENT, 1)


def _scored(pending: _Pending, token_ids: torch.Tensor) -> Scored:
    """What has to be taken while the logits are here."""
    captured, logits = pending.captured, pending.logits
    assert logits is not None
    assert captured.now_rows is not None
    assert captured.now_inverse_t is not None
    places = torch.tensor(captured.now, device=token_ids.device)
    ids = token_ids[captured.requests, 0 if captured.drafts is None else captured.drafts].index_select(0, places)
    labels = ids.long().clamp_min_(0)[:, None]
    logits = logits.float() * captured.now_inverse_t
    logprobs = logits.gather(1, labels)[:, 0] - torch.logsumexp(logits, 1)
    memory = torch.zeros_like(logprobs)
    at = {row: i for i, row in enumerate(captured.now_rows.tolist())}
    for step_rows, mixture in pending.mixed:
        pairs = [(at[row], i) for i, row in enumerate(step_rows) if row in at]
        if pairs:
            mine = torch.tensor([place for place, _ in pairs], device=ids.device)
            i = torch.tensor([i for _, i in pairs], device=ids.device)
            memory[mine] = mixture.share(labels[mine, 0], i)
    return Scored(captured.now, logprobs, memory)
