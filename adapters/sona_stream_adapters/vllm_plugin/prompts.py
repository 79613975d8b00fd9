"""Teacher forcing: what a prompt's rows say about an answer that was given, not drawn."""

from __future__ import annotations

import torch

from .adapting import adapt
from .captures import Kept, handle_of
from .plan import Adapted
from .requests import Tracked
from .service import Service

__all__ = ["taught_capture"]


def taught_capture(rid: str, tracked: Tracked, service: Service) -> tuple[Kept | None, str]:
    """The answer is what stands in the prompt from `teach` on. None with a reason when some of it was not read."""
    teach, ids = tracked.binding.teach, tracked.prompt_ids
    assert teach is not None
    if not 1 <= teach < len(ids):
        return None, f"sona_teach {teach} is no position after the first of a prompt of {len(ids)} tokens"
    if tracked.taught_next != len(ids) - 1:
        return None, "a prefix cache spared some of the prompt's rows: ask for prompt_logprobs with sona_teach"
    hidden = torch.cat(tracked.taught)
    answer = torch.tensor(ids[teach:], dtype=torch.int32)
    temperature = tracked.temperature
    logprobs, version = _logprobs(tracked, hidden, answer.to(hidden.device), temperature or 1.0, service)
    kept = Kept(
        handle=handle_of(rid, "taught", ids[:teach], ids[teach:], version),
        request_id=rid,
        prompt_ids=torch.tensor(ids[:teach], dtype=torch.int32),
        token_ids=answer.to(hidden.device),
        hidden=hidden,
        logprobs=logprobs,
        versions=torch.full((len(answer),), version, dtype=torch.int32),
        memory=torch.zeros(len(answer), device=hidden.device),
        adapter_key=tracked.binding.key,
        temperature=temperature,
    )
    return kept, ""


@torch.inference_mode()
def _logprobs(
    tracked: Tracked, hidden: torch.Tensor, ids: torch.Tensor, temperature: float, service: Service
) -> tuple[torch.Tensor, int]:
    """(T,) under the adapter that served, by the model's own lm_head, and that adapter's version."""
    version, served = 0, None
    if tracked.taught_by is not None:
        A, B, version = tracked.taught_by
        served = Adapted(rows=None, count=0, A=A.T, B=B, strangers=None, bounded=False)
    parts = []
    step = min(64, service.settings.gradient_tokens)
    for start in range(0, len(ids), step):
        states = hidden[start : start + step]
        if served is not None:
            states = adapt(states, served, service.settings.max_delta)
        logits = service.wraps.original_logits(states).float() / temperature
        labels = ids[start : start + step].long()[:, None]
        parts.append(logits.gather(1, labels)[:, 0] - torch.logsumexp(logits, 1))
    return torch.cat(parts), version
