"""What each call does; `worker` makes methods of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..head import check_captures
from .captures import Kept, handle_of
from .codec import Arrays, CodecError, capture_from, capture_parts, pack
from .codec_computed import space_from
from .door import check_fingerprint, checked_name, checked_weights, opened
from .learning import Learning
from .prompts import taught_capture
from .ranks import Ranks
from .refusal import Refusal
from .requests import Tracked
from .scoring import Scoring
from .service import Service, version_warning
from .settings import PluginSettings

__all__ = ["Calls"]

Answer = dict[str, Any]

_MAX_SCORINGS = 16
"""captures on whose log-probabilities calls may work side by side"""


class Calls:
    """Of one worker. Arguments may come from outside: everything is checked before it is used."""

    def __init__(self, worker: Any, settings: PluginSettings, ranks: Ranks) -> None:
        self._service = Service(worker, settings, ranks)
        self._learning = Learning(self._service)
        self._scorings: OrderedDict[str, Scoring] = OrderedDict()
        self._service.when_changed += [self._learning.forget, self._scorings.clear]
        if self._service.serves:
            self._learning.warm_up()

    def count_refused(self) -> None:
        """A call was answered with an error."""
        self._service.counters.refused += 1

    def install(self, restart: bool = False) -> Answer:
        """Put the hook on the model; idempotent. `restart` sets a hook that disabled itself to work again."""
        import vllm

        service = self._service
        if service.serves:
            service.model_changed()
            if restart and service.counters.disabled:
                service.hook.requests.end_all()
                service.hook.planner.forget()
                service.counters.disabled = ""
        version = str(getattr(vllm, "__version__", "unknown"))
        warning = version_warning(version)
        service.warnings = [] if warning is None else [warning]
        refused = {"ok": False, "error": _refusal(service)} if service.problems else {}
        return {**service.info(), "vllm_version": version, **refused}

    def put(self, key: str, version: int, blob: bytes) -> Answer:
        """Serve an adapter under `key` from the next step on."""
        service = self._working()
        checked_name(key, "key")
        arrays, facts = opened(blob, f"adapter {key!r}")
        check_fingerprint(facts, service.fingerprint, f"adapter {key!r}")
        weights = checked_weights(arrays, facts, service.hidden_dim, service.settings.max_rank)
        before = {one.key for one in service.table}
        adapter = service.table.put(key, version, weights)
        service.counters.puts += 1
        evicted = sorted(before - {one.key for one in service.table})
        rank = int(adapter.A.shape[0])
        return {"key": key, "version": version, "rank": rank, "bytes": adapter.nbytes, "evicted": evicted}

    def drop(self, key: str, version: int | None = None) -> Answer:
        """Forget one version or all; ``dropped`` says how many there were."""
        dropped = self._working().table.drop(checked_name(key, "key"), version)
        self._service.counters.drops += dropped
        return {"dropped": dropped}

    def adapters(self) -> Answer:
        """What is here, by key and version."""
        table = self._working().table
        rows = [
            {
                "key": adapter.key,
                "version": adapter.version,
                "rank": int(adapter.A.shape[0]),
                "bytes": adapter.nbytes,
                "current": table.is_current(adapter),
            }
            for adapter in table
        ]
        return {"adapters": rows, "bytes": table.nbytes, "fingerprint": self._service.fingerprint}

    def put_episode(self, key: str, blob: bytes) -> Answer:
        """`hidden` (T, d), `token_ids` (T,), and to standardise with `mean` and `spread` (d,) if given."""
        service = self._working()
        checked_name(key, "key")
        arrays, facts = opened(blob, f"episode {key!r}")
        check_fingerprint(facts, service.fingerprint, f"episode {key!r}")
        if "hidden" not in arrays or "token_ids" not in arrays:
            raise Refusal(f"episode {key!r}: hidden and token_ids are needed")
        if arrays["token_ids"].dtype.kind != "i":
            raise Refusal(f"episode {key!r}: token_ids must be whole numbers")
        hidden, ids = arrays["hidden"].astype(np.float32), arrays["token_ids"].astype(np.int32)
        try:
            space = space_from(arrays, facts) if "mean" in arrays else None
        except CodecError as error:
            raise Refusal(f"episode {key!r}: {error}") from error
        return {"key": key, "evicted": service.episodes.put(key, hidden, ids, space)}

    def drop_episode(self, key: str) -> Answer:
        """Forget it."""
        return {"dropped": int(self._working().episodes.drop(checked_name(key, "key")))}

    def capture(self, rid: str, hidden: bool = False) -> Answer:
        """What the request of this id left: ``state`` is done (with a blob), running (it is being answered, or
        its log-probabilities are taken, ``SONA_VLLM_GRADIENT_TOKENS`` tokens a call) or unknown (with a reason).
        """
        service = self._working()
        checked_name(rid, "rid")
        if any(tracked.binding.rid == rid for tracked in service.hook.requests.live.values()):
            return {"state": "running", "reason": ""}
        kept, reason = service.captures.named(rid), ""
        if kept is None:
            waiting = service.captures.waiting(rid)
            if waiting is None:
                return self._unknown(rid)
            done, kept, reason = self._fetch(rid, waiting)
            if not done:
                return {"state": "running", "reason": reason}
        if kept is None:
            return {"state": "unknown", "reason": reason}
        arrays, facts = capture_parts(kept.capture(service.fingerprint), hidden=bool(hidden))
        marks = {"capped": kept.capped.cpu().numpy()}
        return {"state": "done", "blob": pack({**arrays, **marks}, facts)}

    def _unknown(self, rid: str) -> Answer:
        hook, off = self._service.hook, self._service.counters.disabled
        if reason := hook.unserved.reason(rid):
            return {"state": "unknown", "reason": reason, "unserved": True}
        told = f"; the hook has switched itself off ({off}) and captures nothing now" if off else ""
        reason = f"no request of this id is remembered, or no token of it was captured{told}"
        return {"state": "unknown", "reason": reason}

    def keep(self, blob: bytes) -> Answer:
        """A capture that comes back with its hidden states: it can be asked about by ``handle`` again."""
        service = self._working()
        arrays, facts = opened(blob, "capture")
        check_fingerprint(facts, service.fingerprint, "capture")
        try:
            capture = capture_from(arrays, facts, hidden_dim=service.hidden_dim)
        except CodecError as error:
            raise Refusal(f"capture: {error}") from error
        check_captures([capture], service.hidden_dim)
        memory = _marks(arrays, "memory", len(capture)).astype(np.float32)
        capped = _marks(arrays, "capped", len(capture)).astype(bool)
        handle = handle_of(capture.hidden.tobytes(), capture.token_ids.tobytes(), capture.logprobs.tobytes())
        device = service.device
        kept = Kept(
            handle=handle,
            request_id=capture.request_id,
            prompt_ids=torch.from_numpy(capture.prompt_ids),
            token_ids=torch.from_numpy(capture.token_ids).to(device),
            hidden=torch.from_numpy(capture.hidden).to(device, service.dtype),
            logprobs=torch.from_numpy(capture.logprobs).to(device),
            versions=torch.from_numpy(capture.adapter_versions),
            memory=torch.from_numpy(memory).to(device),
            capped=torch.from_numpy(capped).to(device),
            adapter_key=capture.adapter_key,
            temperature=capture.temperature,
        )
        if not service.captures.keep(kept):
            raise Refusal(f"capture: {kept.nbytes} bytes are more than SONA_VLLM_CAPTURE_MB allows")
        return {"handle": handle}

    def release(self, rid: str) -> Answer:
        """Forget the capture of this id or handle. A request of it that is being answered leaves none."""
        service = self._working()
        service.captures.release(checked_name(rid, "rid"))
        service.hook.requests.release(rid)
        return {}

    def gradient(self, handles: Sequence[str], blob: bytes, options: Answer | None = None) -> Answer:
        """The gradient of a `TokenSignal`; see `Learning`."""
        self._working()
        return self._learning.gradient(handles, blob, options or {})

    def predicted_kl(self, handles: Sequence[str], blob: bytes, options: Answer | None = None) -> Answer:
        """How far ``old.`` and ``new.`` lie apart."""
        self._working()
        return self._learning.predicted_kl(handles, blob, options or {})

    def evaluate(self, handles: Sequence[str], blob: bytes, options: Answer | None = None) -> Answer:
        """How an adapter would treat these captures."""
        self._working()
        return self._learning.evaluate(handles, blob, options or {})

    def curvature(self, handles: Sequence[str], blob: bytes = b"", options: Answer | None = None) -> Answer:
        """How the unadapted policy answers to changes of its hidden states."""
        self._working()
        return self._learning.curvature(handles, blob, options or {})

    def hidden_space(self, handles: Sequence[str], version: str = "") -> Answer:
        """Mean and spread of the hidden states of these captures."""
        self._working()
        return self._learning.hidden_space(handles, version)

    def advance(self, job: str) -> Answer:
        """Work on a call that was asked for with ``sliced``."""
        self._working()
        return self._learning.advance(job)

    def stats(self) -> Answer:
        """Counters and sizes."""
        return self._service.stats()

    def _working(self) -> Service:
        if not self._service.ranks.last_pp:
            raise Refusal("this is not the last pipeline rank: it has no hidden states")
        if self._service.problems:
            raise Refusal(_refusal(self._service))
        self._service.model_changed()  # what is of another model's weights must not be served or computed with
        return self._service

    def _fetch(self, rid: str, tracked: Tracked) -> tuple[bool, Kept | None, str]:
        """Out of the ring, or out of a prompt that was read. Whether that came to an end; None with a reason when
        it is not whole.
        """
        service, reason = self._service, ""
        scoring = self._scorings.pop(rid, None)
        if scoring is None or scoring.tracked is not tracked:
            scoring, reason = self._begin(rid, tracked)
        if scoring is not None:
            if not scoring.advance(service.wraps.original_logits, service.settings.gradient_tokens):
                self._scorings[rid] = scoring
                while len(self._scorings) > _MAX_SCORINGS:
                    self._scorings.popitem(last=False)
                return False, None, "its log-probabilities are taken"
            service.captures.keep(scoring.kept, rid)
        service.captures.settle(rid)
        return True, None if scoring is None else scoring.kept, reason

    def _begin(self, rid: str, tracked: Tracked) -> tuple[Scoring | None, str]:
        """None with a reason when it is not whole."""
        service = self._service
        if tracked.binding.teach is not None:
            return taught_capture(rid, tracked, service)
        if lost := service.ring.lost(tracked.rows):
            service.counters.lost_rows += lost
            return None, f"{lost} of its rows were overwritten; SONA_VLLM_RING_TOKENS bounds the ring"
        return _from_ring(rid, tracked, service), ""


def _refusal(service: Service) -> str:
    return "sona cannot serve this vLLM: " + "; ".join(service.problems)


def _marks(arrays: Arrays, name: str, tokens: int) -> Any:
    marks = arrays.get(name, np.zeros(tokens, np.float32))
    if marks.shape != (tokens,):
        raise Refusal(f"capture: {name} has shape {marks.shape}, expected ({tokens},)")
    return marks


def _from_ring(rid: str, tracked: Tracked, service: Service) -> Scoring:
    rows = service.ring.read(tracked.rows)
    rows = rows.first(tracked.ending.length(rows.token_ids.tolist()))
    kept = Kept(
        handle=handle_of(rid, tracked.rows[0], len(rows.token_ids)),
        request_id=rid,
        prompt_ids=torch.tensor(tracked.prompt_ids, dtype=torch.int32),
        token_ids=rows.token_ids,
        hidden=rows.hidden,
        logprobs=rows.logprobs,
        versions=rows.versions,
        memory=rows.memory,
        capped=rows.capped,
        adapter_key=tracked.binding.key,
        temperature=tracked.temperature,
    )
    return Scoring(tracked, kept, rows.served, rows.scored)
