"""vLLM's two model runners: which methods are wrapped, on the instance alone, and how rows are named there.

V1 (``v1/worker/gpu_model_runner.py``): `execute_model` calls the model's `compute_logits` once for the rows to be
sampled; later calls (prompt log-probabilities, dummy runs) are other people's. V2
(``v1/worker/gpu/model_runner.py``): `sample` does.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from collections.abc import Callable
from typing import Any

from .hook import Hook, Layout
from .lm_head import without_lora

__all__ = ["RunnerWraps", "problems_of", "runner_kind"]

logger = logging.getLogger("sona_stream.vllm_plugin")

_METHODS = {"v1": ("execute_model", "_sample"), "v2": ("execute_model", "sample")}
_FIRST_PARAMETERS = {
    "execute_model": ("scheduler_output",),
    "_sample": ("logits", "spec_decode_metadata"),
    "sample": ("hidden_states", "input_batch"),
}
_RELOADS = ("load_model", "reload_weights")


def runner_kind(runner: Any) -> str:
    """``v1`` or ``v2``."""
    return "v1" if hasattr(runner, "_sample") else "v2"


def problems_of(runner: Any, parallel: Any) -> list[str]:
    """What stands in the way of serving this runner, each thing by its name; empty when nothing does."""
    kind = runner_kind(runner)
    found = [
        f"{kind} runner: {name} is missing" for name in _METHODS[kind] if not callable(getattr(runner, name, None))
    ]
    for name in _METHODS[kind]:
        method = getattr(runner, name, None)
        if callable(method):
            parameters = tuple(inspect.signature(inspect.unwrap(method)).parameters)
            expected = _FIRST_PARAMETERS[name]
            if tuple(p for p in parameters if p != "self")[: len(expected)] != expected:
                found.append(f"{kind} runner: {name}{parameters} does not begin with {expected}")
    if not callable(getattr(getattr(runner, "model", None), "compute_logits", None)):
        found.append("model: compute_logits is missing")
    if kind == "v1" and not hasattr(getattr(runner, "input_batch", None), "req_ids"):
        found.append("v1 runner: input_batch.req_ids is missing")
    if getattr(runner, "batch_sharder", None) is not None or getattr(
        parallel, "enable_batch_sharded_sampling", False
    ):
        found.append(
            "batch-sharded sampling spreads rows over ranks and asks for logits by another method: "
            "start vLLM with enable_batch_sharded_sampling off"
        )
    if getattr(runner, "is_pooling_model", False):
        found.append("a pooling model draws no tokens")
    return found


class RunnerWraps:
    """The wraps on one runner and its model."""

    def __init__(self, runner: Any, hook: Hook, on_reload: Callable[[], None]) -> None:
        self.kind = runner_kind(runner)
        self._runner, self._hook, self._on_reload = runner, hook, on_reload
        self._model: Any = None
        self._originals: dict[str, Any] = {}
        self._stale = self._blind = False

    def install(self) -> None:
        """Wrap the instance's methods; a second call changes nothing."""
        if self._originals:
            return
        wraps: dict[str, Callable[..., Any]] = {"execute_model": self._execute_model}
        wraps |= {"_sample": self._sample_v1} if self.kind == "v1" else {"sample": self._sample_v2}
        wraps |= {name: self._reload(name) for name in _RELOADS if callable(getattr(self._runner, name, None))}
        for name, wrap in wraps.items():
            self._originals[name] = getattr(self._runner, name)
            setattr(self._runner, name, wrap)
        self._wrap_model()

    def original_logits(self, hidden: Any) -> Any:
        """The model's own `compute_logits`, outside a step."""
        with without_lora(self._model):
            return self._compute_logits(hidden)

    def refresh(self) -> bool:
        """Wrap the model that is there now, if it is another one, or was loaded again. Whether it was."""
        if self._runner.model is self._model and not self._stale:
            return False
        self._stale = False
        self._wrap_model()
        return True

    def _wrap_model(self) -> None:
        model, hook = self._runner.model, self._hook
        if model is not self._model:
            self._compute_logits = model.compute_logits
            model.compute_logits = functools.partial(hook.compute_logits, model.compute_logits)
            self._model = model

    def _reload(self, name: str) -> Callable[..., Any]:
        def reload(*args: Any, **kwargs: Any) -> Any:
            try:
                return self._originals[name](*args, **kwargs)
            finally:
                self._stale = True

        return reload

    def _execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        hook, original = self._hook, self._originals["execute_model"]
        if hook.counters.disabled:
            self._pass_by(scheduler_output)
            return original(scheduler_output, *args, **kwargs)
        try:
            if self._stale or self._runner.model is not self._model:
                self._on_reload()
            hook.begin(scheduler_output)
            if self.kind == "v1" and hook.requests.live and scheduler_output.total_num_scheduled_tokens:
                hook.armed = functools.partial(self._layout_v1, scheduler_output)
        except Exception as error:
            hook.fail("execute_model", error)
        try:
            out = original(scheduler_output, *args, **kwargs)
        finally:
            hook.armed = None
        if self.kind == "v1" and hook.requests.teaching and not hook.counters.disabled:
            try:
                state = self._runner.execute_model_state
                if state is not None:
                    hook.read_prompts(state.hidden_states, self._offset_v1)
            except Exception as error:
                hook.fail("prompt states", error)
        return out

    def _pass_by(self, scheduler_output: Any) -> None:
        """What fails here may be what switched the hook off: said once, and no reason to stop a step."""
        try:
            self._hook.pass_by(scheduler_output)
        except Exception as error:
            if not self._blind:
                logger.warning("sona: who is answered without the hook cannot be told: %s", error)
            self._blind = True

    def _layout_v1(self, scheduled: Any) -> Layout:
        request_ids = self._runner.input_batch.req_ids
        drafts = scheduled.scheduled_spec_decode_tokens
        if not drafts:
            return Layout(request_ids)
        counts = [1 + len(drafts.get(request_id, ())) for request_id in request_ids]
        known = hasattr(self._runner, "input_ids") and hasattr(self._runner, "query_start_loc")
        return Layout(request_ids, counts, self._drafts_v1 if known else None)

    def _drafts_v1(self, index: int, count: int) -> Any:
        """A request's drafts are the last tokens that it gave to the model. With asynchronous scheduling the
        scheduler's own are placeholders.
        """
        stop = int(self._runner.query_start_loc.np[index + 1])
        return self._runner.input_ids.gpu[stop - count : stop]

    def _offset_v1(self, request_id: str) -> int | None:
        index = self._runner.input_batch.req_id_to_index.get(request_id)
        return None if index is None else int(self._runner.query_start_loc.np[index])

    def _sample_v1(self, *args: Any, **kwargs: Any) -> Any:
        out = self._originals["_sample"](*args, **kwargs)
        try:
            self._hook.sampled(out.sampled_token_ids)
        except Exception as error:
            self._hook.fail("tokens", error)
        return out

    def _sample_v2(self, hidden_states: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        hook, original = self._hook, self._originals["sample"]
        if hook.counters.disabled or not hook.requests.live:
            return original(hidden_states, input_batch, *args, **kwargs)
        try:
            hook.read_prompts(hidden_states, lambda request_id: _offset_v2(input_batch, request_id))
            hook.armed = functools.partial(_layout_v2, input_batch)
        except Exception as error:
            hook.fail("sample", error)
        try:
            out = original(hidden_states, input_batch, *args, **kwargs)
        finally:
            hook.armed = None
        try:
            hook.sampled(out[0].sampled_token_ids, out[1])
        except Exception as error:
            hook.fail("tokens", error)
        return out


def _layout_v2(batch: Any) -> Layout:
    if not batch.num_draft_tokens:
        return Layout(batch.req_ids)
    bounds = batch.cu_num_logits_np.tolist()
    counts = [stop - start for start, stop in itertools.pairwise(bounds)]
    known = hasattr(batch, "input_ids") and hasattr(batch, "logits_indices")
    return Layout(batch.req_ids, counts, functools.partial(_drafts_v2, batch, bounds) if known else None)


def _drafts_v2(batch: Any, bounds: list[int], index: int, count: int) -> Any:
    """Each row's own token: the first is what was said last, the others are drafts."""
    stop = bounds[index + 1]
    return batch.input_ids[batch.logits_indices[stop - count : stop]]


def _offset_v2(batch: Any, request_id: str) -> int | None:
    if request_id not in batch.req_ids:
        return None
    return int(batch.query_start_loc_np[batch.req_ids.index(request_id)])
