"""Teacher forcing: what a prompt's rows say about an answer that was given, not drawn."""

from __future__ import annotations

import torch

from .adapting import adapt
from .captures import Kept, handle_of
from .plan import Adapted
from .requests import Tracked
from .scoring import Scoring
from .service import Service

__all__ = ["taught_capture"]


@torch.inference_mode()
def taught_capture(rid: str, tracked: Tracked, service: Service) -> tuple[Scoring | None, str]:
    """The answer is what stands in the prompt from `teach` on, and its `last` token if that is told apart. None
    with a reason when some of it was not read.
    """
    teach, ids = tracked.binding.teach, tracked.prompt_ids
    assert teach is not None
    if not 1 <= teach < len(ids):
        return None, f"sona_teach {teach} is no position after the first of a prompt of {len(ids)} tokens"
    if (last := tracked.binding.last) is not None and last >= service.vocab_size:
        return None, f"sona_last {last} is outside the vocabulary of {service.vocab_size}"
    if tracked.taught_next != len(ids) - 1:
        return None, "a prefix cache spared some of the prompt's rows: ask for prompt_logprobs with sona_teach"
    hidden = served = torch.cat(tracked.taught)
    answer, device = torch.tensor(ids[teach:], dtype=torch.int32), hidden.device
    version, capped = 0, None
    if tracked.taught_by is not None:
        A, B, version = tracked.taught_by
        adapter = Adapted(rows=None, count=0, A=A.T, B=B, strangers=None, bounded=False)
        served, capped = adapt(hidden, adapter, service.settings.max_delta)
    kept = Kept(
        handle=handle_of(rid, "taught", ids[:teach], ids[teach:], version),
        request_id=rid,
        prompt_ids=torch.tensor(ids[:teach], dtype=torch.int32),
        token_ids=answer.to(device),
        hidden=hidden,
        logprobs=torch.zeros(len(answer), device=device),
        versions=torch.full((len(answer),), version, dtype=torch.int32),
        memory=torch.zeros(len(answer), device=device),
        capped=torch.zeros(len(answer), dtype=torch.bool, device=device) if capped is None else capped,
        adapter_key=tracked.binding.key,
        temperature=tracked.temperature,
    )
    return Scoring(tracked, kept, served), ""
