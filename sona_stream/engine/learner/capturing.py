"""From a feedback to a lesson: the captured answer, or the same again from what was kept of it."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import CaptureGone, NotAdapted
from ...events import AdapterRef, Feedback, Trajectory
from ...lora import Capture, LoraWeights
from ...protocols import HiddenStateHost, Store
from .lessons import Lesson

__all__ = ["accepted_capture", "correction_capture", "find_lesson", "require_answer"]


async def find_lesson(
    host: HiddenStateHost, store: Store, feedback: Feedback, trajectory: Trajectory, groups: Sequence[str]
) -> Lesson:
    """A correction is teacher-forced onto the same prompt. Raises CaptureGone naming the setting that would have
    kept what is missing.
    """
    if feedback.kind == "correction":
        capture = await correction_capture(host, feedback, trajectory)
    else:
        capture = await _answer(host, store, trajectory)
    if len(capture) == 0:
        raise CaptureGone(f"request {trajectory.request_id} has no answer to learn from")
    return Lesson(capture, feedback.quality, tuple(groups), feedback.id, trajectory.embedding)


async def correction_capture(
    host: HiddenStateHost, feedback: Feedback, trajectory: Trajectory, *, hidden: bool = False
) -> Capture:
    """The better answer as if the model had given it. `hidden`: with its states. Raises CaptureGone."""
    if feedback.correction is None:
        raise CaptureGone(f"the text of correction {feedback.id} is no longer kept")
    prompt = await _prompt(host, trajectory)
    name = f"{trajectory.request_id}#{feedback.id}"
    return await host.encode(prompt, feedback.correction, request_id=name, hidden=hidden)


async def accepted_capture(host: HiddenStateHost, trajectory: Trajectory) -> Capture:
    """The answer as it was given, with the unadapted model's states on it. Raises CaptureGone."""
    prompt_ids: Sequence[int] = trajectory.prompt_ids
    token_ids: Sequence[int] = trajectory.token_ids
    try:
        known = await host.capture(trajectory.request_id)
    except NotAdapted:
        raise
    except CaptureGone:
        known = None  # the same can be made of what was kept of it
    if known is not None:
        if len(known) and len(known.hidden) == len(known):
            return known
        prompt_ids, token_ids = tuple(map(int, known.prompt_ids)), tuple(map(int, known.token_ids))
    if not len(token_ids) or not len(prompt_ids):
        raise _gone(trajectory)
    return await host.encode(prompt_ids, token_ids, request_id=f"{trajectory.request_id}#accepted", hidden=True)


async def require_answer(host: HiddenStateHost, feedback: Feedback, trajectory: Trajectory) -> None:
    """Raises CaptureGone, as `find_lesson` would, when the answer is certainly gone. Looks, computes nothing."""
    if trajectory.prompt_ids and (trajectory.token_ids or feedback.correction is not None):
        return
    try:
        await host.capture(trajectory.request_id)
    except NotAdapted:
        raise
    except CaptureGone:
        raise _gone(trajectory) from None


async def _answer(host: HiddenStateHost, store: Store, trajectory: Trajectory) -> Capture:
    if not trajectory.no_capture:
        try:
            return await host.capture(trajectory.request_id)
        except NotAdapted:
            raise
        except CaptureGone:
            pass  # the same can be made of what was kept of it
    if not trajectory.token_ids or not trajectory.prompt_ids:
        raise _gone(trajectory)
    adapter = trajectory.adapter
    temperature = trajectory.sampling.temperature
    return await host.encode(
        trajectory.prompt_ids,
        trajectory.token_ids,
        request_id=trajectory.request_id,
        temperature=1.0 if temperature is None else temperature,
        adapter_key=None if adapter is None else adapter.key,
        weights=None if adapter is None else await _weights(store, adapter),
    )


async def _prompt(host: HiddenStateHost, trajectory: Trajectory) -> Sequence[int]:
    if trajectory.prompt_ids:
        return trajectory.prompt_ids
    try:
        return tuple(int(token) for token in (await host.capture(trajectory.request_id)).prompt_ids)
    except NotAdapted:
        raise
    except CaptureGone:
        raise _gone(trajectory) from None


async def _weights(store: Store, adapter: AdapterRef) -> LoraWeights | None:
    """Those that drew the answer; None (as if the base model had) when that version is no longer kept."""
    record = await store.adapter(adapter.key, adapter.version)
    return None if record is None else record.weights


def _gone(trajectory: Trajectory) -> CaptureGone:
    if trajectory.no_capture:
        return CaptureGone(
            f"nothing of request {trajectory.request_id} was captured: {trajectory.no_capture}; and its token ids "
            "were not kept"
        )
    return CaptureGone(
        f"the model no longer holds request {trajectory.request_id} and its token ids were not kept; "
        "sona.storage: features (or text) would keep them"
    )
