"""What happens in a step, whichever runner vLLM uses: rows are adapted before the lm_head, mixed after it, and
captured. Knows tensors and names, no vLLM class.

Every body disables the hook on any exception and lets the step pass through: the server never dies because of it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..episodes import EpisodeStore, Mixture, mix
from .adapters import AdapterTable
from .adapting import adapt
from .captures import CaptureStore
from .counters import Counters
from .plan import Captured, Plan, Planner
from .requests import Requests, Tracked, binding_from
from .ring import CaptureRing
from .settings import PluginSettings
from .staging import Scored, Step, own
from .unserved import Unserved

__all__ = ["Hook", "Layout"]

logger = logging.getLogger("sona_stream.vllm_plugin")

Logits = torch.Tensor | None
Layout = tuple[Sequence[str], Sequence[int] | None]
"""request ids in the batch's order, and their numbers of rows (None: one each)"""


@dataclasses.dataclass(slots=True, eq=False)
class _Pending:
    """Between the logits and the tokens drawn from them."""

    captured: Captured
    hidden: torch.Tensor
    served: torch.Tensor | None
    capped: torch.Tensor | None
    logits: torch.Tensor | None
    """(m, V) copy of those rows whose log-probabilities must be taken now; the sampler writes to its own"""
    mixed: list[tuple[list[int], Mixture]]
    """rows of the step, and what became of them"""
    owned: bool
    """`hidden` is the step's own, not a copy of a part of a buffer"""


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
        self.planner = Planner(table, episodes, counters, settings.max_delta, device)
        self._settings, self._table, self._ring, self._captures = settings, table, ring, captures
        self._layout: Callable[[], Layout] | None = None
        self._pending: _Pending | None = None
        self._capped = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def capped_rows(self) -> int:
        """Rows whose change was cut to the norm cap. Waits for the device."""
        return int(self._capped)

    @property
    def busy(self) -> bool:
        """Whether anybody's rows concern us."""
        return bool(self.requests.live)

    def fail(self, where: str, error: Exception) -> None:
        """Pass everything through from now on, and say why."""
        self.counters.errors += 1
        self.counters.disabled = f"{where}: {type(error).__name__}: {error}"
        logger.exception("sona: the hook disabled itself in %s; answers go on without adapters", where)
        self.give_up(f"the hook failed while it was being answered ({self.counters.disabled})")

    def give_up(self, reason: str) -> None:
        """Who is being answered now goes on without us; what had ended is kept."""
        self._layout = self._pending = None
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
                reason = f"the hook had switched itself off before ({self.counters.disabled})"
                self.unserved.note(binding.rid, reason)

    def begin(self, scheduled: Any) -> None:
        """A step starts: who came, who left."""
        self.counters.steps += 1
        self._layout = self._pending = None
        self.requests.follow(scheduled)
        if self.requests.finished:
            self._captures.finish(self.requests.finished)
            self.requests.finished.clear()

    def arm(self, layout: Callable[[], Layout]) -> None:
        """The next logits are those that tokens are drawn from; any later ones are not touched."""
        self._layout = layout

    def disarm(self) -> None:
        """There were none."""
        self._layout = None

    def compute_logits(
        self, original: Callable[..., Logits], hidden: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Logits:
        """In place of the model's own."""
        if self._layout is None or self.counters.disabled:
            return original(hidden, *args, **kwargs)
        plan, changed, capped = self._before(hidden)
        logits = original(changed, *args, **kwargs)
        if plan is not None and logits is not None and (plan.captured is not None or plan.mixed):
            try:
                self._after(plan, hidden, changed, capped, logits)
            except Exception as error:
                self.fail("logits", error)
        return logits

    def _before(self, hidden: torch.Tensor) -> tuple[Plan | None, torch.Tensor, torch.Tensor | None]:
        try:
            assert self._layout is not None
            request_ids, counts = self._layout()
            self._layout = None
            plan = self.planner.plan(self.requests.live, request_ids, counts, changed=self.requests.changed)
            if plan.rows != hidden.shape[0]:
                self.counters.mismatch += 1
                return None, hidden, None
            self.counters.missing_rows += plan.missing
            if plan.adapted is None:
                return plan, hidden, None
            changed, capped = adapt(hidden, plan.adapted, self._settings.max_delta)
            if capped is not None:
                self._capped += capped.sum()
            self.counters.adapted_rows += plan.adapted.count
        except Exception as error:
            self.fail("hidden states", error)
            return None, hidden, None
        return plan, changed, capped

    def _after(
        self,
        plan: Plan,
        hidden: torch.Tensor,
        changed: torch.Tensor,
        capped: torch.Tensor | None,
        logits: torch.Tensor,
    ) -> None:
        mixed: list[tuple[list[int], Mixture]] = []
        for one in plan.mixed:
            mixture = mix(
                logits[one.rows],
                hidden[one.rows],
                one.episodes,
                share=self._settings.episode_share,
                threshold=self._settings.episode_threshold,
            )
            mixture.write(logits, one.rows)
            self.counters.mixed_rows += len(one.places)
            mixed.append((one.places, mixture))
        captured = plan.captured
        if captured is None:
            return
        served = None if changed is hidden else changed
        kept = None if captured.now_rows is None else logits.index_select(0, captured.now_rows)
        kept_hidden = hidden if captured.owned else own(hidden)
        self._pending = _Pending(captured, kept_hidden, served, capped, kept, mixed, kept_hidden is hidden)

    def sampled(self, token_ids: torch.Tensor, accepted: torch.Tensor | None = None) -> None:
        """`token_ids` (requests, k), below 0 where a draft was rejected; `accepted` (requests,): how many of each
        row's are tokens, where the runner says so. The caller fails the hook on an exception.
        """
        pending, self._pending = self._pending, None
        if pending is None or self.counters.disabled:
            return
        captured = pending.captured
        at = self._ring.reserve(captured.count)
        if at is None:
            self.counters.lost_rows += captured.count
            return
        kept_ids = token_ids if captured.owned else own(token_ids)
        captured.owned = pending.owned and kept_ids is token_ids
        accepted = None if accepted is None else accepted.clone()
        scored = None if pending.logits is None else _scored(pending, token_ids)
        self._ring.stage(
            Step(captured, at, pending.hidden, pending.served, pending.capped, kept_ids, accepted, scored)
        )
        for tracked, count in captured.owners:
            tracked.rows.extend(range(at, at + count))
            at += count
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
