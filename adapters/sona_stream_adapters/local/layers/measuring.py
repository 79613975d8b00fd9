"""How adapters with layers inside the model treat captured answers. Nothing is changed."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from sona_stream.lora import F32, Capture, Evaluation, LoraWeights
from sona_stream_adapters.head import Batch, Repetition, Shard, evaluation_of, stack_factors, unusable

from ..adapters import adapt
from ..model import LanguageModel
from .passes import Busy, answer_states, passes

__all__ = ["layered_evaluation", "layered_kl", "layered_logprobs"]


def layered_evaluation(
    model: LanguageModel, captures: Sequence[Capture], weights: LoraWeights, is_busy: Busy
) -> Generator[None, None, Evaluation]:
    """As `head.evaluate`; |h' - h| is of the final states, all pairs applied."""
    if not weights.is_finite():
        return unusable(captures)
    moved = yield from _adapted_states(model, captures, weights, is_busy)
    batch = Batch(captures)
    repetition, seen = Repetition(batch, Shard(0, model.vocab_size)), torch.empty(4, len(batch))
    for segment in batch.segments:
        at, temperature = slice(segment.start, segment.stop), batch.temperatures[segment.capture]
        hidden, labels = batch.rows(segment), batch.token_ids[at, None]
        base, logp = (torch.log_softmax(model.logits(h) / temperature, 1) for h in (hidden, moved[at]))
        p, base_p = logp.exp(), base.exp()
        kl = torch.linalg.vecdot(p, logp - base).clamp_(min=0)
        repetition.take(segment, p, base_p, torch.ones_like(kl))
        ratios = torch.linalg.vector_norm(moved[at] - hidden, dim=1) / torch.linalg.vector_norm(hidden, dim=1)
        seen[:, at] = torch.stack([kl, ratios, logp.gather(1, labels)[:, 0], base.gather(1, labels)[:, 0]])
        yield
    return evaluation_of(batch, seen, repetition)


def layered_kl(
    model: LanguageModel, captures: Sequence[Capture], old: LoraWeights, new: LoraWeights, is_busy: Busy
) -> Generator[None, None, float]:
    """1/2 Var_{p_old}((logits_new - logits_old) / T) a token: as `head.predicted_kl`, where the step from one to
    the other is not a small change of one product, so both logits are computed.
    """
    before = yield from _adapted_states(model, captures, old, is_busy)
    after = yield from _adapted_states(model, captures, new, is_busy)
    batch, total = Batch(captures), 0.0
    for segment in batch.segments:
        at, temperature = slice(segment.start, segment.stop), batch.temperatures[segment.capture]
        one, other = (model.logits(states[at]).double() / temperature for states in (before, after))
        p, shift = torch.softmax(one, 1), other - one
        shift -= torch.linalg.vecdot(p, shift)[:, None]
        total += 0.5 * float(torch.linalg.vecdot(p, shift.square()).sum())
        yield
    return total / len(batch)


def layered_logprobs(
    model: LanguageModel, capture: Capture, weights: LoraWeights, is_busy: Busy
) -> Generator[None, None, F32]:
    """(T,) log p(y_t) at `weights`."""
    states = yield from _adapted_states(model, [capture], weights, is_busy)
    labels = torch.tensor(capture.token_ids).long()[:, None]
    logits = model.logits(states) / (capture.temperature or 1.0)
    found: F32 = torch.log_softmax(logits, 1).gather(1, labels)[:, 0].numpy()
    return found


def _adapted_states(
    model: LanguageModel, captures: Sequence[Capture], weights: LoraWeights, is_busy: Busy
) -> Generator[None, None, torch.Tensor]:
    """(N, d) in the order of the captures, all pairs applied."""
    factors, found = stack_factors(weights), [torch.zeros(0, model.hidden_dim)] * len(captures)
    for taken in passes(captures, is_busy):
        own = [captures[i] for i in taken]
        states = answer_states(model, own, factors)
        states = adapt(states, [factors] * len(states))
        for i, part in zip(taken, torch.split(states, [len(one) for one in own]), strict=True):
            found[i] = part
        yield
    return torch.cat(found)
