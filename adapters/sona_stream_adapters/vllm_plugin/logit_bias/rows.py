"""Which rows of a batch belong to a tenant with a bias, and adding it to exactly those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .file import MAX_TENANT, TenantBias
from .folder import BiasTable

__all__ = ["ARGUMENT", "RowBias", "apply_batch_update", "tenant_of", "validate"]

ARGUMENT = "sona_tenant"
"""of ``vllm_xargs``: whose bias a request gets"""


def tenant_of(sampling_params: Any) -> str | None:
    """The tenant that a request names."""
    tenant = (getattr(sampling_params, "extra_args", None) or {}).get(ARGUMENT)
    return tenant if isinstance(tenant, str) and tenant else None


def validate(sampling_params: Any) -> None:
    """Raises ValueError, which vLLM answers with status 400."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    if ARGUMENT in extra:
        tenant = extra[ARGUMENT]
        if not isinstance(tenant, str) or not 0 < len(tenant) <= MAX_TENANT:
            raise ValueError(f"vllm_xargs.{ARGUMENT} must be a string of 1 to {MAX_TENANT} characters")


def apply_batch_update(rows: dict[int, str], update: Any) -> None:
    """Keep row -> tenant in step with vLLM's persistent batch (V1's `BatchUpdate`): removed, added, moved."""
    for index in update.removed:
        rows.pop(index, None)
    for index, params, *_ in update.added:
        _set(rows, index, tenant_of(params))
    for first, second, direction in update.moved:
        one, other = rows.pop(first, None), rows.pop(second, None)
        _set(rows, second, one)
        if direction.name == "SWAP":
            _set(rows, first, other)


def _set(rows: dict[int, str], index: int, tenant: str | None) -> None:
    if tenant is None:
        rows.pop(index, None)
    else:
        rows[index] = tenant


class RowBias:
    """Adds the biases in place. Index tensors are made anew only when the rows or the table have changed."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._table: BiasTable = {}
        self._indices: tuple[torch.Tensor, torch.Tensor] | None = None
        self._values: torch.Tensor | None = None

    def add(self, logits: torch.Tensor, rows: Mapping[int, str], table: BiasTable) -> int:
        """`logits` (n, V) float; `rows`: row -> tenant. -> rows that have got a bias. Others are not touched.

        Raises IndexError, before anything is changed, when a row is outside of `logits`.
        """
        bound = tuple((row, tenant) for row, tenant in rows.items() if tenant in table)
        if not bound:
            return 0
        if max(row for row, _ in bound) >= logits.shape[0]:
            raise IndexError(f"row {max(row for row, _ in bound)} of {logits.shape[0]}")
        key = (bound, logits.device, logits.dtype)
        if self._key != key or self._table is not table:
            self._build([(row, table[tenant]) for row, tenant in bound], logits)
            self._key, self._table = key, table
        if self._indices is not None and self._values is not None:
            logits[self._indices] += self._values
        return len(bound)

    def add_expanded(
        self, logits: torch.Tensor, slot_of_row: torch.Tensor, slots: Mapping[int, str], table: BiasTable
    ) -> int:
        """The same where a request owns several rows and only the device knows which: `slot_of_row` (n,) names
        each row's request slot, `slots` the tenants of the slots in the batch. -> slots that have got a bias.
        """
        groups: dict[str, list[int]] = {}
        for slot, tenant in slots.items():
            if tenant in table:
                groups.setdefault(tenant, []).append(slot)
        for tenant, members in groups.items():
            wanted = torch.tensor(members, device=logits.device, dtype=slot_of_row.dtype)
            mask = torch.isin(slot_of_row, wanted)[:, None]
            columns = torch.from_numpy(table[tenant].token_ids).to(logits.device, torch.int64)
            bias = torch.from_numpy(table[tenant].bias).to(logits.device, logits.dtype)
            before = logits[:, columns]
            logits[:, columns] = torch.where(mask, before + bias, before)
        return sum(map(len, groups.values()))

    def _build(self, bound: Sequence[tuple[int, TenantBias]], logits: torch.Tensor) -> None:
        sizes = [len(bias.bias) for _, bias in bound]
        rows = np.repeat(np.asarray([row for row, _ in bound], np.int64), sizes)
        columns = np.concatenate([bias.token_ids for _, bias in bound]).astype(np.int64)
        values = np.concatenate([bias.bias for _, bias in bound])
        self._indices = (_on(logits.device, rows), _on(logits.device, columns))
        self._values = _on(logits.device, values).to(logits.dtype)


def _on(device: torch.device, array: np.ndarray[Any, Any]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
