"""`POST /v1/feedback`: durable before it is answered, learned from behind it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from ..errors import FeedbackConflict, NotFound
from ..events import Feedback, FeedbackOutcome, Principal, Trajectory
from ..protocols import Store
from .auth import asserted_user
from .incoming import Call, read_json
from .judgement import Judgement, parse_judgement
from .responses import Response, json_response

__all__ = ["judged", "post_feedback"]

_log = logging.getLogger(__name__)

_POLL_S = 0.02
_STILL_ANSWERING_S = 2.0
"""How long feedback waits for the answer that it judges to be wholly through."""
_FIRST_OUTCOME_S = 60.0
"""How long a repeated ``wait=1`` waits for what became of the first."""


async def post_feedback(call: Call) -> Response:
    """202 when it waits to be learned from; 200 when it is decided, which ``?wait=1`` waits for."""
    body = await read_json(call)
    header_key = call.headers.get(b"idempotency-key", b"").decode("utf-8", "replace").strip() or None
    settings = call.app.services.settings.sona
    judgement = parse_judgement(body, settings.metrics, header_key)
    principal = asserted_user(call.principal, call.headers, settings.user_header, judgement.user)
    trajectory = await judged(call, judgement.named, principal)
    feedback = _feedback(judgement, trajectory.request_id, principal)
    first = await call.app.services.store.commit_feedback(feedback)
    wait = call.asked("wait")
    if first.id == feedback.id:
        # As it was said: the store may keep less of it than the learner needs.
        outcome = await call.app.services.feedback.learn(feedback, wait=wait)
    else:
        outcome = await _outcome_of(call.app.services.store, first, wait=wait)
    call.app.metrics.judged(feedback, outcome)
    return _told(outcome, first, duplicate=first.id != feedback.id)


async def judged(call: Call, named: str, principal: Principal) -> Trajectory:
    """The one answer of this tenant that the id names. What is somebody else's looks like what never was."""
    found = await _find(call, named, principal)
    if len(found) > 1:
        raise FeedbackConflict(
            "this id names more than one request: use x-sona-request-id or the completion's id instead"
        )
    trajectory = None
    if found:
        trajectory = await call.app.services.store.trajectory(found[0], tenant=principal.tenant)
    if trajectory is None or _is_foreign(trajectory, principal):
        days = call.app.services.settings.sona.storage_options.features_ttl_days
        raise NotFound(
            f"there is no request with this id; requests are kept for {days:g} days "
            "(`sona.storage_options.features_ttl_days`)"
        )
    return trajectory


async def _find(call: Call, named: str, principal: Principal) -> list[str]:
    """Raises FeedbackConflict for an answer of theirs that goes on for longer than is waited here."""
    store, tenant = call.app.services.store, principal.tenant
    bare = named.removeprefix("chatcmpl-").removeprefix("cmpl-")
    deadline = time.monotonic() + _STILL_ANSWERING_S
    while True:
        # Asked before the search: an answer that ends in between has then been recorded.
        running = {one for name in (named, bare) for one in _answering(call, name, principal)}
        found = await store.find_requests(named, tenant=tenant)
        if not found and bare != named:
            found = await store.find_requests(bare, tenant=tenant)
        if running <= set(found):
            return found
        if time.monotonic() > deadline:
            raise FeedbackConflict("this request is still being answered: say so again when its answer has ended")
        await asyncio.sleep(_POLL_S)


def _answering(call: Call, named: str, principal: Principal) -> list[str]:
    """Ids of their requests of this name whose answers are on their way."""
    running = call.app.answering.find(named).items()
    mine = ((one, whose) for one, whose in running if whose is not None and whose.tenant == principal.tenant)
    return [one for one, whose in mine if not _is_foreign(whose, principal)]


def _is_foreign(got: Trajectory | Principal, principal: Principal) -> bool:
    """Whether a gateway speaks for another end user than the one who got the answer."""
    return None not in (got.user, principal.user) and got.user != principal.user


def _feedback(judgement: Judgement, request_id: str, principal: Principal) -> Feedback:
    return Feedback(
        id=f"fb-{secrets.token_hex(16)}",
        request_id=request_id,
        tenant=principal.tenant,
        key_id=principal.key_id,
        user=principal.user,
        kind=judgement.kind,
        quality=judgement.quality,
        metric_name=judgement.metric_name,
        value=judgement.value,
        correction=judgement.correction,
        idempotency_key=judgement.idempotency_key,
        created_at=time.time(),
    )


async def _outcome_of(store: Store, first: Feedback, *, wait: bool) -> FeedbackOutcome:
    """What became of the feedback that came first; "queued" while that is open."""
    deadline, pause = time.monotonic() + (_FIRST_OUTCOME_S if wait else 0), _POLL_S
    while True:
        outcome = await store.outcome(first.id)
        if outcome is not None:
            return outcome
        if time.monotonic() >= deadline:
            return FeedbackOutcome(feedback_id=first.id, status="queued")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


def _told(outcome: FeedbackOutcome, feedback: Feedback, *, duplicate: bool) -> Response:
    answer: dict[str, Any] = {
        "id": outcome.feedback_id,
        "request_id": feedback.request_id,
        "status": outcome.status,
        "reason": outcome.reason or None,
        "adapter": str(outcome.adapter) if outcome.adapter else None,
        "duplicate": duplicate,
    }
    return json_response(answer, 202 if outcome.status == "queued" else 200)
