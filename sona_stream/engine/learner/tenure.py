"""Since when a model has stood behind its name: token ids of what another one answered mean nothing to it."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

from ...protocols import Store

__all__ = ["answering_since"]


async def answering_since(store: Store, model: str, fingerprint: str) -> float:
    """``time.time()`` of the first meeting with this fingerprint; 0 when no other was met before it."""
    name = f"tenure:{quote(model, safe='')}"
    blob = await store.get_blob(name)
    if blob is not None:
        known = json.loads(blob)
        if known["fingerprint"] == fingerprint:
            return float(known["since"])
    since = 0.0 if blob is None else time.time()
    await store.put_blob(name, json.dumps({"fingerprint": fingerprint, "since": since}).encode())
    return since
