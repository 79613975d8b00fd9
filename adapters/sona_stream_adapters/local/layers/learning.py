"""The gradient of `TokenSignal`'s loss through the whole model, by autograd: for adapters with layers inside."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.errors import HostError
from sona_stream.lora import F32, Capture, LoraGradient, LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.head import Batch, Factors

from ..model import LanguageModel
from .passes import Busy, answer_states, passes

__all__ = ["layered_gradient"]


def layered_gradient(
    model: LanguageModel, captures: Sequence[Capture], signal: TokenSignal, is_busy: Busy
) -> Generator[None, None, LoraGradient]:
    """As `head.gradient`, over the whole vocabulary (``top_k`` is not looked at), one slice a pass. The captures'
    states are of the unadapted model and give p0. Raises HostError on ``fisher``.
    """
    if signal.fisher:
        raise HostError("fisher: an adapter with layers has none")
    with torch.inference_mode(False):
        leaves = _Leaves(signal.weights)
    seen = np.zeros(3)
    for taken in passes(captures, is_busy):
        own = [captures[i] for i in taken]
        advantages = np.concatenate([signal.advantages[i] for i in taken], dtype=np.float32)
        with torch.inference_mode(False), torch.enable_grad():
            seen += _backward(model, own, advantages, signal, leaves)
        yield
    return leaves.result(*seen.tolist(), tokens=sum(map(len, captures)))


class _Leaves:
    """The factors as leaves of the graph, each multiplied by its scaling on the way."""

    def __init__(self, weights: LoraWeights) -> None:
        self._micro, self._base = _leaves(weights.micro), None if weights.base is None else _leaves(weights.base)
        self._layers = {layer: _leaves(pair) for layer, pair in weights.layers.items()}
        self._weights = weights

    def inside(self) -> Factors:
        """What acts inside the model; the final pair is `applied`."""
        layers = {layer: _factors(*self._layers[layer], pair) for layer, pair in self._weights.layers.items()}
        none = torch.zeros(0)
        return Factors(A=none, B=none, layers=layers)

    def applied(self, states: torch.Tensor) -> torch.Tensor:
        """(n, d) -> (n, d) with the final pairs."""
        out = states
        for leaves, pair in ((self._micro, self._weights.micro), (self._base, self._weights.base)):
            if leaves is not None and pair is not None:
                out = out + (states @ leaves[0].T) @ (leaves[1].T * pair.scaling)
        return out

    def result(self, loss: float, kl: float, logprob: float, *, tokens: int) -> LoraGradient:
        """The sums of all passes."""
        base = (None, None) if self._base is None else _grads(self._base)
        micro_A, micro_B = _grads(self._micro)
        return LoraGradient(
            micro_A=micro_A,
            micro_B=micro_B,
            base_A=base[0],
            base_B=base[1],
            tokens=tokens,
            loss=loss,
            mean_kl_to_base=kl / max(tokens, 1),
            mean_logprob=logprob / max(tokens, 1),
            layers={layer: _grads(pair) for layer, pair in self._layers.items()},
        )


def _backward(
    model: LanguageModel, captures: Sequence[Capture], advantages: F32, signal: TokenSignal, leaves: _Leaves
) -> NDArray[np.float64]:
    """Adds to the leaves' gradients. -> (loss, sum of KL to base, sum of log-probabilities)"""
    batch = Batch(captures)
    temperatures = torch.tensor(
        [t for t, c in zip(batch.temperatures, captures, strict=True) for _ in range(len(c))]
    )
    states = leaves.applied(answer_states(model, captures, leaves.inside()))
    logp = torch.log_softmax(model.plain_logits(states) / temperatures[:, None], 1)
    label = logp.gather(1, batch.token_ids[:, None])[:, 0]
    with torch.no_grad():
        base = torch.log_softmax(model.plain_logits(batch.hidden) / temperatures[:, None], 1)
        counted = torch.ones_like(label) if batch.learned is None else batch.learned.float()
        factor = torch.from_numpy(advantages) * _ratio(label, batch.logprobs, advantages, signal) * counted
    kl = (logp.exp() * (logp - base)).sum(1)
    loss = signal.anchor * (kl * counted).sum() - (factor * label).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss, kl.sum(), label.sum()]).detach().double().numpy()


def _ratio(label: torch.Tensor, drawn: torch.Tensor, advantages: F32, signal: TokenSignal) -> torch.Tensor:
    """PPO's factor on each token's gradient: the ratio, or 0 where the clipped branch is the smaller one."""
    if signal.ratio_clip is None:
        return torch.ones_like(label)
    low, high = signal.ratio_clip
    ratio, sign = (label - drawn).exp(), torch.from_numpy(advantages)
    return ratio.masked_fill(((sign > 0) & (ratio > high)) | ((sign < 0) & (ratio < low)), 0.0)


def _leaves(pair: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = (torch.tensor(np.asarray(values, np.float32)) for values in (pair.lora_A, pair.lora_B))
    return A.requires_grad_(), B.requires_grad_()


def _factors(A: torch.Tensor, B: torch.Tensor, pair: LowRank) -> Factors:
    return Factors(A=A, B=B * pair.scaling)


def _grads(leaves: tuple[torch.Tensor, torch.Tensor]) -> tuple[F32, F32]:
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return found[0].numpy(), found[1].numpy()
