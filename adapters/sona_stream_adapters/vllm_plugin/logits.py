"""A learned logit bias a tenant, for servers that take ``--logits-processors`` and nothing else.

    SONA_VLLM_BIAS_DIR=/var/lib/sona-bias vllm serve MODEL \\
        --logits-processors sona_stream_adapters.vllm_plugin.logits:TenantBias

A request names its tenant in ``"vllm_xargs": {"sona_tenant": "acme"}``; its rows get that tenant's bias, other rows
are not touched. ``sona-stream export KEY --format logit-bias --out /var/lib/sona-bias`` writes a tenant's file; it
is served from the next step after the folder was looked at (twice a second). Further variables:
`logit_bias.settings`.

What it cannot do, in contrast to the plug-in's hook: it sees no hidden states, so what is added is the same at
every token, an adapter's mean effect alone; it captures nothing, so nothing can be learned through it; the
log-probs that vLLM returns are those before the bias, unless ``--logprobs-mode processed_logprobs``. V1 refuses to
start with any custom processor under speculative decoding (V2 takes it; the drafter then guesses without the bias).
vLLM 0.27.1 falls back to V1 for a server with custom processors. **Who may set vllm_xargs may name any tenant**:
put it behind a gateway that sets or strips them (the plug-in's endpoint guard does).

`TenantBias` serves both model runners; `V1TenantBias` and `V2TenantBias` are it for one of them. They need
``SONA_VLLM_BIAS_DIR`` alone, not ``SONA_VLLM=1``.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .logit_bias.folder import BiasFolder, BiasTable
from .logit_bias.rows import RowBias, apply_batch_update, tenant_of, validate
from .logit_bias.settings import BiasSettings, read_bias_settings
from .logit_bias.shared import Broadcast, SharedTable

if TYPE_CHECKING:
    import torch

__all__ = ["TenantBias", "V1TenantBias", "V2TenantBias", "bias_stats"]

_log = logging.getLogger("sona_stream.vllm_plugin")


class _NoV1:
    """In place of V1's interface where vLLM is not installed."""


class _NoV2:
    """In place of V2's interface, which vLLM 0.27.1 does not have."""


def _interface(module: str, missing: type) -> Any:
    try:
        return import_module(module).LogitsProcessor
    except ImportError:
        return missing


_V1 = _interface("vllm.v1.sample.logits_processor", _NoV1)
_V2 = _interface("vllm.v1.worker.gpu.sample.logits_processor", _NoV2)

_live: weakref.WeakSet[_Serving] = weakref.WeakSet()


class _Serving:
    """What both kinds have in common: the table, the rows, and passing everything through after an error."""

    def __init__(self, settings: BiasSettings, vocab_size: int, group: tuple[bool, Broadcast | None]) -> None:
        first, broadcast = group
        self.folder = BiasFolder(settings, vocab_size) if first else None
        if self.folder is not None:
            self.folder.start()
        self.shared = SharedTable(self.folder, broadcast)
        self.table: BiasTable = {}
        self.rows = RowBias()
        self.disabled = ""
        self.counts: Counter[str] = Counter()
        _live.add(self)

    def step(self) -> None:
        """Once a step, on every rank."""
        try:
            self.table = self.shared.step()
        except Exception as error:
            self.fail("the table", error)

    def fail(self, where: str, error: Exception) -> None:
        """From now on every row passes untouched; the server lives."""
        if not self.disabled:
            self.disabled = f"{where}: {error!r}"
            _log.exception("sona: logit biases are switched off after an error in %s", where, exc_info=error)

    def stats(self) -> dict[str, Any]:
        of_folder = {} if self.folder is None else self.folder.counts
        served = {"tenants": len(self.table), "biased_rows": self.counts["biased_rows"], "disabled": self.disabled}
        return {**of_folder, **served}


class V1TenantBias(_V1):  # type: ignore[misc, valid-type]
    """For vLLM's first model runner: a row is an index of its persistent batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Raises SettingsError, which ends the start of the server, for a bad variable."""
        self.serving = _serve(vllm_config)
        self._tenants: dict[int, str] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a tenant that is no name."""
        validate(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """A bias may change the likeliest token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Called by vLLM before each step."""
        self.serving.step()
        if batch_update:
            try:
                apply_batch_update(self._tenants, batch_update)
            except Exception as error:
                self.serving.fail("update_state", error)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(requests, V), changed in place."""
        if self._tenants and not self.serving.disabled:
            try:
                added = self.serving.rows.add(logits, self._tenants, self.serving.table)
                self.serving.counts["biased_rows"] += added
            except Exception as error:
                self.serving.fail("apply", error)
        return logits


class V2TenantBias(_V2):  # type: ignore[misc, valid-type]
    """For vLLM's second model runner: a row belongs to a request slot, several to one under speculation."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        """Raises SettingsError, which ends the start of the server, for a bad variable."""
        self.serving = _serve(vllm_config)
        self._tenants: dict[int, str] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a tenant that is no name."""
        validate(sampling_params)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Whether this slot's logits need us."""
        tenant = tenant_of(sampling_params)
        self._tenants.pop(req_idx, None)
        if tenant is not None:
            self._tenants[req_idx] = tenant
        return tenant is not None

    def apply_staged_writes(self) -> None:
        """Called by vLLM before each step."""
        self.serving.step()

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """(rows, V) float32, changed in place."""
        if self._tenants and not self.serving.disabled:
            try:
                self.serving.counts["biased_rows"] += self._add(logits, ctx)
            except Exception as error:
                self.serving.fail("apply", error)
        return logits

    def _add(self, logits: torch.Tensor, ctx: Any) -> int:
        slots = ctx.idx_mapping_np.tolist()
        table = self.serving.table
        if logits.shape[0] == len(slots):
            rows = {row: self._tenants[slot] for row, slot in enumerate(slots) if slot in self._tenants}
            return self.serving.rows.add(logits, rows, table)
        bound = {slot: self._tenants[slot] for slot in slots if slot in self._tenants}
        return self.serving.rows.add_expanded(logits, ctx.expanded_idx_mapping, bound, table)


class TenantBias(_V1, _V2):  # type: ignore[misc, valid-type]
    """Makes the one that the model runner in use asks for, by what it is made with."""

    def __new__(cls, vllm_config: Any, *rest: Any) -> Any:
        """``rest``: (device, is_pin_memory) for V1, (req_states,) for V2."""
        return V2TenantBias(vllm_config, *rest) if len(rest) == 1 else V1TenantBias(vllm_config, *rest)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a tenant that is no name."""
        validate(sampling_params)


def bias_stats() -> dict[str, Any]:
    """Counters of this process's processor; empty when there is none."""
    for serving in _live:
        return serving.stats()
    return {}


def _serve(vllm_config: Any) -> _Serving:
    vocab_size = int(vllm_config.model_config.get_vocab_size())
    return _Serving(read_bias_settings(), vocab_size, _group(vllm_config))


def _group(vllm_config: Any) -> tuple[bool, Broadcast | None]:
    """(whether this rank watches the folder, how it tells the others)."""
    if int(vllm_config.parallel_config.tensor_parallel_size) == 1:
        return True, None
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return group.rank_in_group == 0, lambda news: group.broadcast_object(news, src=0)
