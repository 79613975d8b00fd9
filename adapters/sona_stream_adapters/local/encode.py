"""Teacher forcing: the capture of an answer that was given, not generated, from one prefill."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch

from sona_stream.errors import HostError
from sona_stream.lora import Capture, HiddenSpace, LoraWeights
from sona_stream_adapters.episodes import measured_space
from sona_stream_adapters.head import stack_factors
from sona_stream_adapters.text import REFERENCE_VERSION, reference_ids

from .adapters import adapt
from .model import LanguageModel

__all__ = ["encode", "measure_space"]

BUSY_CHUNK = 24
"""tokens a slice while answers are streaming, about 100 ms on one core"""
IDLE_CHUNK = 256


def encode(
    model: LanguageModel,
    prompt_ids: list[int],
    answer: str | list[int],
    *,
    request_id: str,
    fingerprint: str,
    temperature: float,
    adapter_key: str | None,
    weights: LoraWeights | None,
    is_busy: Callable[[], bool],
) -> Generator[None, None, Capture]:
    """Row t of ``hidden`` is the state that predicts ``token_ids[t]``, as in a generated answer's capture."""
    token_ids = _answer_ids(model, answer) if isinstance(answer, str) else answer
    _check(model, prompt_ids, token_ids)
    hidden = yield from _states(model, prompt_ids + token_ids[:-1], len(prompt_ids) - 1, is_busy)
    factors = [None if weights is None else stack_factors(weights)]
    labels = torch.tensor(token_ids)[:, None]
    logprobs = torch.empty(len(token_ids))
    for at in range(0, len(token_ids), BUSY_CHUNK):
        rows = hidden[at : at + BUSY_CHUNK]
        logits = model.logits(adapt(rows, factors * len(rows))) / (temperature or 1.0)
        logprobs[at : at + BUSY_CHUNK] = torch.log_softmax(logits, 1).gather(1, labels[at : at + BUSY_CHUNK])[:, 0]
        yield
    return Capture(
        request_id=request_id,
        fingerprint=fingerprint,
        prompt_ids=np.asarray(prompt_ids, np.int32),
        token_ids=np.asarray(token_ids, np.int32),
        hidden=hidden.numpy(),
        logprobs=logprobs.numpy(),
        adapter_versions=np.zeros(len(token_ids), np.int32),
        adapter_key=adapter_key,
        temperature=temperature,
    )


def measure_space(model: LanguageModel, *, is_busy: Callable[[], bool]) -> Generator[None, None, HiddenSpace]:
    """Of the reference text. Raises HostError when the model's context has no room for it."""
    try:
        lead, rest = reference_ids(model.tokenizer, model.context)
    except ValueError as error:
        raise HostError(f"hidden_space: {error}") from error
    hidden = yield from _states(model, (lead + rest)[:-1], len(lead) - 1, is_busy)
    return measured_space(hidden, f"{REFERENCE_VERSION}:{len(rest)}")


def _states(
    model: LanguageModel, ids: list[int], first: int, is_busy: Callable[[], bool]
) -> Generator[None, None, torch.Tensor]:
    """Final states (n, d) from position `first` on, in slices."""
    whole, cache = torch.tensor(ids), model.new_cache()
    parts: list[torch.Tensor] = []
    start = 0
    while start < len(ids):
        stop = min(start + (BUSY_CHUNK if is_busy() else IDLE_CHUNK), len(ids))
        states = model.prefill(whole[None, start:stop], cache)[0]
        if stop > first:
            parts.append(states[max(first - start, 0) :].clone())
        start = stop
        yield
    return torch.cat(parts)


def _answer_ids(model: LanguageModel, answer: str) -> list[int]:
    ids = list(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    end = model.tokenizer.eos_token_id
    if end is None:
        end = min(model.eos_ids, default=None)
    return ids if end is None else [*ids, int(end)]


def _check(model: LanguageModel, prompt_ids: list[int], token_ids: list[int]) -> None:
    if not prompt_ids:
        raise HostError("prompt_ids: at least one token is needed")
    if not token_ids:
        raise HostError("answer: at least one token is needed")
    if len(prompt_ids) + len(token_ids) > model.context:
        raise HostError(
            f"prompt_ids and answer have {len(prompt_ids) + len(token_ids)} tokens; the model's context is "
            f"{model.context}"
        )
    for name, ids in (("prompt_ids", prompt_ids), ("answer", token_ids)):
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise HostError(f"{name}: a token is outside the vocabulary of {model.vocab_size}")
