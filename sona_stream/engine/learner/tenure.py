"""Since when a model has stood behind its name: token ids of what another one answered mean nothing to it."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

from ...events import Trajectory
from ...protocols import Store

__all__ = ["answered_before", "answering_since"]


async def answering_since(store: Store, model: str, fingerprint: str) -> float:
    """``time.time()`` of the first meeting with this fingerprint; 0 when no other was met before it. Never in the
    future, where a clock that was ahead at that meeting would put it: that becomes now.
    """
    name, now = f"tenure:{quote(model, safe='')}", time.time()
    blob = await store.get_blob(name)
    known = None if blob is None else json.loads(blob)
    since = 0.0 if known is None else now
    if known is not None and known["fingerprint"] == fingerprint:
        since = min(float(known["since"]), now)
        if since == known["since"]:
            return since
    await store.put_blob(name, json.dumps({"fingerprint": fingerprint, "since": since}).encode())
    return since


def answered_before(trajectory: Trajectory, since: float) -> bool:
    """Whether another model gave this answer; `since`: as `answering_since` says."""
    return 0 < trajectory.started_at < since
