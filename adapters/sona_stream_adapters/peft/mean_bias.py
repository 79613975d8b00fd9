"""An adapter's mean effect on the logits, for servers that take a logits processor and nothing else.

    bias = E_t[logits'(h_t) - logits(h_t)],     for plain heads W (s_m B_m A_m + s_b B_b A_b) E_t[h_t]

over the answers that the adapter learned from. A softmax sees it up to a constant, so it is shifted until its mean
under the tokens' mean probability is zero; then the tokens that matter most stay: dropping token v costs about
1/2 p_v bias_v^2 nats (the quadratic model of KL), so the largest of these are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sona_stream.engine.learner import AdapterKey
from sona_stream.errors import CaptureGone, InvalidRequest
from sona_stream.lora import F32, AdapterRecord, Capture

from ..vllm_plugin.logit_bias.file import BadBias, Limits, TenantBias, write_bias
from .checkpoint import Checkpoint
from .lora_folder import lora_factors, own_rank
from .source import open_model

__all__ = ["MeanBias", "mean_bias", "write_mean_bias"]

_TOKENS = 1024
"""kept states that are averaged over, the newest"""
_CHUNK = 64
"""states whose logits are in memory together"""


@dataclasses.dataclass(frozen=True, slots=True)
class MeanBias:
    """The bias and what it is worth on the states that it was made from; KL in nats a token, at temperature 1."""

    token_ids: torch.Tensor
    """(n,) int32, ascending"""
    bias: torch.Tensor
    """(n,) float32"""
    states: int
    kl_base: float
    """of the unadapted model to the adapted one"""
    kl_bias: float
    """of the model with this bias to the adapted one"""


def write_mean_bias(record: AdapterRecord, captures: Sequence[Capture], *, model: str, out: Path) -> Sequence[str]:
    """Write the tenant's file into the folder `out`, in place of an older one. -> what to tell the person.

    Raises CaptureGone when no judged answer is kept, InvalidRequest naming ``out``, and as `open_model`.
    """
    if out.exists() and not out.is_dir():
        raise InvalidRequest(f"{out} exists and is not a folder", param="out")
    own = [one for one in captures if one.fingerprint == record.fingerprint]
    if not own:
        raise CaptureGone(
            f"no judged answer is kept for {record.key}, so its mean hidden state is unknown; "
            "sona.storage: features keeps them"
        )
    checkpoint = open_model(record, model)
    made = mean_bias(record, _states(own, checkpoint), checkpoint)
    tenant = AdapterKey.parse(record.key).tenant
    bias = TenantBias(
        tenant=tenant,
        token_ids=made.token_ids.numpy(),
        bias=made.bias.numpy(),
        vocab_size=checkpoint.vocab_size,
        source=f"{record.key}@{record.version}",
    )
    try:
        path = write_bias(out, bias, metadata={"fingerprint": record.fingerprint})
    except (OSError, BadBias) as error:
        raise InvalidRequest(f"{out} cannot be written: {error}", param="out") from error
    return (
        f"{path}: the mean bias of {bias.source} on {len(made.bias)} of {checkpoint.vocab_size} tokens",
        f"over {made.states} kept tokens the adapter is {made.kl_base:.3g} nats a token from the base model and "
        f"{made.kl_bias:.3g} from this bias",
        "not in it: what the adapter does differently from token to token, and the memory of episodes",
    )


def mean_bias(
    record: AdapterRecord, hidden: F32, checkpoint: Checkpoint, *, limits: Limits | None = None
) -> MeanBias:
    """`hidden` (T, d): states of the unadapted model. At most `limits.tokens` entries, cut at `limits.bias`."""
    bounds = limits or Limits()
    weights = torch.cat(list(checkpoint.head_rows()))
    lora_A, lora_B = lora_factors(record.weights, checkpoint, own_rank(record.weights))
    offset, cap = checkpoint.head_bias(), _transform(checkpoint.config)
    states = torch.from_numpy(np.ascontiguousarray(hidden, np.float32))

    def logits() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for part in torch.split(states, _CHUNK):
            base = part @ weights.T
            if offset is not None:
                base += offset
            yield cap(base), cap(base + (part @ lora_A.T) @ lora_B.T)

    vocabulary = checkpoint.vocab_size
    difference, mass = torch.zeros(vocabulary, dtype=torch.float64), torch.zeros(vocabulary, dtype=torch.float64)
    for base, adapted in logits():
        difference += (adapted - base).double().sum(0)
        mass += (base.softmax(1) + adapted.softmax(1)).double().sum(0) / 2
    bias = difference / len(states)
    mass /= len(states)
    bias -= (mass * bias).sum()
    chosen = (mass * bias.square()).topk(min(bounds.tokens, vocabulary)).indices.sort().values
    kept = bias[chosen].clamp(-bounds.bias, bounds.bias).float()
    whole = torch.zeros(vocabulary)
    whole[chosen] = kept
    kl_base = kl_bias = 0.0
    for base, adapted in logits():
        kl_base += _kl(adapted, base)
        kl_bias += _kl(adapted, base + whole)
    return MeanBias(chosen.int(), kept, len(states), kl_base / len(states), kl_bias / len(states))


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Sum over rows of KL(p || q), of logits."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return float((log_p.exp() * (log_p - log_q)).sum())


def _transform(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What an architecture does to its logits after lm_head: a factor (Cohere, Granite), a soft cap (Gemma)."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
    limit = getattr(text, "final_logit_softcapping", None)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        scaled = logits if scale == 1.0 else logits * scale
        return scaled if not limit else torch.tanh(scaled / limit) * limit

    return transform


def _states(captures: Sequence[Capture], checkpoint: Checkpoint) -> F32:
    """(T, d) of the newest kept tokens; a host that keeps the states to itself leaves their text: one prefill."""
    found: list[F32] = []
    model = None
    for capture in reversed(captures):
        hidden = capture.hidden
        if len(hidden) == 0:
            if model is None:
                from ..local.model import load_model

                model = load_model(checkpoint.folder, name=checkpoint.folder.name)
            hidden = _prefill(model, capture)
        found.append(hidden)
        if sum(map(len, found)) >= _TOKENS:
            break
    return np.concatenate(found)[:_TOKENS]


@torch.inference_mode()
def _prefill(model: Any, capture: Capture) -> F32:
    ids = torch.from_numpy(np.concatenate([capture.prompt_ids, capture.token_ids]).astype(np.int64))[:-1]
    states = model.prefill(ids[None], model.new_cache())[0]
    out: F32 = states[len(capture.prompt_ids) - 1 :].numpy()
    return out
