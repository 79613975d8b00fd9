"""Gradients, KL and evaluation of captures that are kept here, in slices that decoding can wait for."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import Evaluation, LoraGradient

from ..episodes import measured_space
from ..head import (
    Batch,
    Job,
    Scratch,
    check_captures,
    check_signal,
    curvature,
    evaluate,
    gradient,
    predicted_kl,
)
from .captures import Kept
from .codec import CodecError, pack
from .codec_computed import curvature_parts, evaluation_parts, gradient_parts, signal_from, space_parts
from .door import checked_states, checked_weights, opened
from .refusal import Refusal
from .service import Service

__all__ = ["Learning"]

CHUNK = 64
MAX_JOBS = 16

Answer = dict[str, Any]
Numbers = np.ndarray[Any, Any]
_Job = tuple[Job[Any], Callable[[Any], Answer], list[str]]
"""what runs, what makes an answer of it, and the captures that it is about"""


class Learning:
    """The calls of one worker. With ``{"sliced": True}`` among the options a call answers ``{"job": id}`` at once,
    and `advance` works on it for at most ``SONA_VLLM_GRADIENT_TOKENS`` tokens a time.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._scratch = Scratch()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._started = 0
        self._forgotten: OrderedDict[str, list[str]] = OrderedDict()

    def warm_up(self) -> None:
        """The first gradient of a process takes seconds (kernels are chosen, buffers made): not at a lesson."""
        d = self._service.hidden_dim
        hidden = torch.ones(2, d, dtype=self._service.dtype, device=self._service.device)
        zeros = torch.zeros(2)
        kept = Kept(
            "", "warm-up", zeros.int(), zeros.int(), hidden, zeros, zeros.int(), zeros, zeros.bool(), None, 1.0
        )
        weights = {"micro.lora_A": np.zeros((1, d), np.float32), "micro.lora_B": np.zeros((d, 1), np.float32)}
        blob = pack({**weights, "advantages_0": np.ones(2, np.float32)}, {"anchor": 0.1})
        if self._service.logits is not None:
            self._gradient([kept], blob, {})

    def gradient(self, handles: Sequence[str], blob: bytes, options: Answer) -> Answer:
        """`TokenSignal` -> `LoraGradient`, both as in `codec`. Tokens whose adapter was cut to the norm cap are no
        reason to move it further: of the loss they keep the anchor, which pulls it back.
        """
        return self._gradient(self._find(handles), blob, options)

    def predicted_kl(self, handles: Sequence[str], blob: bytes, options: Answer) -> Answer:
        """`blob`: two adapters, ``old.`` and ``new.``."""
        kept = self._find(handles)
        arrays, facts = opened(blob, "predicted_kl")
        rank = self._service.settings.max_rank
        old, new = (
            checked_weights(arrays, facts, self._service.hidden_dim, rank, each) for each in ("old.", "new.")
        )
        top_k = options.get("top_k", facts.get("top_k"))
        task = predicted_kl(self._source, self._batch(kept), old, new, top_k, self._scratch)
        return self._run(task, lambda kl: {"kl": float(kl)}, options, kept)

    def evaluate(self, handles: Sequence[str], blob: bytes, options: Answer) -> Answer:
        """An adapter -> `Evaluation`."""
        kept = self._find(handles)
        arrays, facts = opened(blob, "evaluate")
        weights = checked_weights(arrays, facts, self._service.hidden_dim, self._service.settings.max_rank)
        task = evaluate(self._source, self._batch(kept), weights, self._scratch)

        def answer(evaluation: Evaluation) -> Answer:
            return {"blob": pack(*evaluation_parts(evaluation))}

        return self._run(task, answer, options, kept)

    def curvature(self, handles: Sequence[str], blob: bytes, options: Answer) -> Answer:
        """`Curvature` of these captures. `blob`: among its arrays ``elsewhere`` (m, d), where there is one."""
        kept = self._find(handles)
        arrays = opened(blob, "curvature")[0] if blob else {}
        elsewhere = checked_states(arrays, self._service.hidden_dim) if "elsewhere" in arrays else None
        task = curvature(self._source, self._batch(kept), self._scratch, elsewhere)
        return self._run(task, lambda found: {"blob": pack(*curvature_parts(found))}, options, kept)

    def hidden_space(self, handles: Sequence[str], version: str) -> Answer:
        """Where the hidden states of these captures lie."""
        with torch.inference_mode():
            found = measured_space(torch.cat([one.hidden for one in self._find(handles)]), version)
        return {"blob": pack(*space_parts(found))}

    def advance(self, job: str) -> Answer:
        """``{"done": False}``, or with ``"done": True`` what the call would have answered."""
        if job in self._forgotten:
            handles = self._forgotten.pop(job)
            raise Refusal("the model was loaded again meanwhile: what was computed is void", gone=handles)
        if job not in self._jobs:
            raise Refusal(f"job {job!r} is not here: it was answered, or {MAX_JOBS} others began since")
        running, answer, _ = self._jobs[job]
        try:
            done = running.advance(max(1, self._service.settings.gradient_tokens // CHUNK))
        except BaseException:
            del self._jobs[job]
            raise
        if not done:
            return {"done": False}
        del self._jobs[job]
        return {"done": True, **answer(running.result())}

    def forget(self) -> None:
        """Give up what runs and what was computed: the model changed."""
        for name, (job, _, handles) in self._jobs.items():
            job.close()
            self._forgotten[name] = handles
        while len(self._forgotten) > MAX_JOBS:
            self._forgotten.popitem(last=False)
        self._jobs.clear()
        self._scratch.clear()

    @property
    def _source(self) -> Any:
        if self._service.logits is None:
            raise HostError(self._service.head_note or "the lm_head is not at hand")
        return self._service.logits

    def _find(self, handles: Sequence[str]) -> list[Kept]:
        kept = self._service.captures.find(list(handles))
        check_captures(kept, self._service.hidden_dim)
        return kept

    def _batch(self, kept: list[Kept]) -> Batch:
        chunk = min(CHUNK, self._service.settings.gradient_tokens)
        names = [one.handle.encode() for one in kept]
        return Batch(kept, device=self._service.device, chunk=chunk, keys=names)

    def _gradient(self, kept: list[Kept], blob: bytes, options: Answer) -> Answer:
        arrays, facts = opened(blob, "gradient")
        checked_weights(arrays, facts, self._service.hidden_dim, self._service.settings.max_rank)
        try:
            signal = signal_from(arrays, {**facts, **options}, len(kept))
        except CodecError as error:
            raise Refusal(f"gradient: {error}") from error
        kept = [
            _of_policy(one, arrays.get(f"logprobs_{i}"), arrays.get(f"memory_{i}")) for i, one in enumerate(kept)
        ]
        check_signal(kept, signal)
        for one, advantages in zip(kept, signal.advantages, strict=True):
            advantages[one.capped.cpu().numpy()] = 0.0

        def answer(found: LoraGradient) -> Answer:
            return {"blob": pack(*gradient_parts(found))}

        return self._run(gradient(self._source, self._batch(kept), signal, self._scratch), answer, options, kept)

    def _run(
        self,
        task: Generator[None, None, Any],
        answer: Callable[[Any], Answer],
        options: Answer,
        kept: Sequence[Kept],
    ) -> Answer:
        job: Job[Any] = Job(task)
        if not options.get("sliced"):
            return answer(job.run())
        self._started += 1
        name = f"job-{self._started}"
        self._jobs[name] = (job, answer, [one.handle for one in kept])
        while len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)[1][0].close()
        return {"job": name}


def _of_policy(kept: Kept, logprobs: Numbers | None, memory: Numbers | None) -> Kept:
    """With the log-probabilities of the policy that drew it and what of it came from memory, where the caller knows
    better: an answer that was encoded again has those of the policy that it was encoded under.
    """
    known: dict[str, Any] = {}
    for name, values in (("logprobs", logprobs), ("memory", memory)):
        if values is None:
            continue
        if values.shape != (len(kept),) or not np.isfinite(values).all():
            raise Refusal(f"{name} of {kept.request_id!r}: expected {len(kept)} finite numbers")
        known[name] = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(kept.logprobs.device)
    return dataclasses.replace(kept, **known) if known else kept
