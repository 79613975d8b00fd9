"""What people ask about adapter versions: which there are, what one is, how two differ."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np

from ...errors import NotFound
from ...lora import AdapterRecord
from ...protocols import AdapterLister
from .comparison import compare, describe, norm, unadapted
from .keys import AdapterKey
from .lessons import up_to
from .shelf import size_of
from .state import State

__all__ = ["Inspection"]


class Inspection:
    """Changes nothing."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def versions(self, *, tenant: str | None = None) -> list[dict[str, Any]]:
        """Every kept version, newest last within a key: of all, or of a tenant and its end users."""
        store = self._state.store
        if isinstance(store, AdapterLister):
            found = await store.adapter_heads(tenant=tenant, described=True)
        else:
            found = [(one, size_of(one)) for one in await store.adapters() if tenant in (None, _tenant(one))]
        served = {str(line.key): line.served.version for line in self._state.versions.lines() if line.served}
        # There may be hundreds of thousands.
        return await anyio.to_thread.run_sync(
            lambda: [describe(one, served=served.get(one.key) == one.version, nbytes=size) for one, size in found]
        )

    async def show(self, key: str, version: int) -> dict[str, Any]:
        """One version: its size, the feedback behind it, and what is known of its key. Raises NotFound."""
        parsed, record = _parsed(key), await self._record(key, version)
        return {
            **self._view(parsed, record),
            "rank": record.weights.micro.lora_A.shape[0],
            "base_rank": 0 if record.weights.base is None else record.weights.base.lora_A.shape[0],
            "layers": sorted(record.weights.layers),
            "norm": norm(record.weights),
            "feedback_ids": list(record.feedback_ids),
            "gates": self._state.refusals.counts(parsed),
            "watched": await self._state.watches.of_key(parsed),
        }

    async def difference(self, key: str, one: int, other: int) -> dict[str, Any]:
        """From `one` to `other`, 0 being the base model. KL is the quadratic model of KL(one || other), nats per
        token, and the log-likelihoods are those of the answers kept for the key. Raises NotFound, HostAway.
        """
        parsed, state = _parsed(key), self._state
        records = [await self._record(key, version) for version in (one, other) if version]
        if not records:
            raise NotFound("name at least one version: 0 is the base model")
        fingerprint = records[0].fingerprint
        if any(record.fingerprint != fingerprint for record in records):
            raise NotFound(f"versions {one} and {other} of {key} were made for different models")
        found = {record.version: record.weights for record in records}
        before, after = (found.get(version) or unadapted(records[0].weights) for version in (one, other))
        host = state.host(parsed.model)
        lessons = (await state.book(parsed)).of(parsed) if host.fingerprint == fingerprint else []
        captures = [lesson.capture for lesson in up_to(reversed(lessons), state.settings.gate_tokens)]
        told = {"key": key, "from": one, "to": other, **compare(before, after, captures)}
        if captures:
            told["kl"] = await host.predicted_kl(captures, before, after)
            seen = [await host.evaluate(captures, weights) for weights in (before, after)]
            told["mean_logprob"] = [float(np.mean(np.concatenate(list(each.logprobs)))) for each in seen]
            told["mean_kl_to_base"] = [each.mean_kl_to_base for each in seen]
        return told

    def _view(self, key: AdapterKey, record: AdapterRecord) -> dict[str, Any]:
        served = self._state.versions.served(key)
        return describe(
            record, served=served is not None and served.version == record.version, nbytes=size_of(record)
        )

    async def _record(self, key: str, version: int) -> AdapterRecord:
        record = await self._state.store.adapter(key, version)
        if record is None:
            raise NotFound(f"adapter {key}@{version} is not kept")
        return record


def _tenant(record: AdapterRecord) -> str:
    """Its own, or that of the end user whose it is."""
    return AdapterKey.parse(record.key).tenant.partition(":")[0]


def _parsed(key: str) -> AdapterKey:
    try:
        return AdapterKey.parse(key)
    except ValueError as error:
        raise NotFound(str(error)) from error
