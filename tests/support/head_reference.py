"""The loss of `TokenSignal` on the textbook formulas, in float64, differentiated by autograd; and what tests of the
head share: captures, factors, ranks that only pretend to be apart.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sona_stream.lora import Capture, LowRank
from sona_stream_adapters.head import Job, Shard


def rng(seed=0):
    return np.random.default_rng(seed)


def f32(array):
    return np.ascontiguousarray(array, np.float32)


def capture(tokens, seed=0, temperature=1.0, dim=24, vocabulary=150):
    r = rng(seed)
    return Capture(
        request_id=f"c{seed}",
        fingerprint="f",
        prompt_ids=np.arange(3, dtype=np.int32),
        token_ids=r.integers(0, vocabulary, tokens).astype(np.int32),
        hidden=f32(r.standard_normal((tokens, dim)) * 1.5),
        logprobs=f32(1 - np.log(vocabulary) + r.standard_normal(tokens)),
        adapter_versions=np.zeros(tokens, np.int32),
        temperature=temperature,
    )


def pair(rank, seed, scaling=1.0, size=0.15, dim=24):
    r = rng(seed)
    return LowRank(f32(r.standard_normal((rank, dim)) * size), f32(r.standard_normal((dim, rank)) * size), scaling)


def finish(generator):
    return Job(generator).run()


def close(actual, expected, rtol=1e-5, floor=0.0):
    """Equal up to rounding: relative to the largest entry, or to `floor` where everything cancels."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    if expected.size:
        assert np.abs(actual - expected).max() <= rtol * max(np.abs(expected).max(), floor)


@dataclasses.dataclass(frozen=True)
class Model:
    """lm_head as the formula has it."""

    W: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def logits(self, h):
        raw = h @ self.W.double().T + (0.0 if self.bias is None else self.bias.double())
        if self.soft_cap is not None:
            raw = self.soft_cap * torch.tanh(raw / self.soft_cap)
        return self.scale * raw

    def cut(self, rows):
        bias = None if self.bias is None else self.bias[rows]
        return dataclasses.replace(self, W=self.W[rows], bias=bias)


class Reference:
    """`rows`: the vocabulary cut to these tokens, in ascending order."""

    def __init__(self, captures, weights, model, rows=None):
        self.captures = captures
        self.model = model if rows is None else model.cut(rows)
        self.rows = rows
        self.factors = {}
        for name, low_rank in (("micro", weights.micro), ("base", weights.base)):
            if low_rank is not None:
                A, B = (
                    torch.tensor(x, dtype=torch.float64, requires_grad=True)
                    for x in (low_rank.lora_A, low_rank.lora_B)
                )
                self.factors[name] = (A, B, low_rank.scaling)

    def states(self, one, adapted=True):
        h = torch.as_tensor(one.hidden).double()
        if adapted:
            h = h + sum(s * (h @ A.T) @ B.T for A, B, s in self.factors.values())
        return h

    def logps(self, one, adapted=True):
        return torch.log_softmax(self.model.logits(self.states(one, adapted)) / (one.temperature or 1.0), dim=1)

    def labels(self, one):
        ids = torch.as_tensor(one.token_ids).long()
        return ids if self.rows is None else torch.searchsorted(self.rows, ids)

    def loss(self, signal):
        total, kls, chosen_all = torch.zeros((), dtype=torch.float64), [], []
        for one, advantage in zip(self.captures, signal.advantages, strict=True):
            logp, logp0 = self.logps(one), self.logps(one, adapted=False).detach()
            chosen = logp[torch.arange(len(one)), self.labels(one)]
            a = torch.from_numpy(advantage).double()
            factor = torch.ones_like(a)
            if signal.ratio_clip:
                low, high = signal.ratio_clip
                rho = (chosen - torch.as_tensor(one.logprobs).double()).exp().detach()
                unclipped, clipped = rho * a, rho.clamp(low, high) * a
                factor = torch.where(clipped < unclipped, 0.0, rho)
            kl = (logp.exp() * (logp - logp0)).sum(1)
            total = total - (a * factor * chosen).sum() + signal.anchor * kl.sum()
            kls.append(kl.detach())
            chosen_all.append(chosen.detach())
        return total, torch.cat(kls), torch.cat(chosen_all)

    def gradients(self, signal):
        loss, kl, chosen = self.loss(signal)
        loss.backward()
        return float(loss.detach()), float(kl.mean()), float(chosen.mean())

    def fisher(self):
        """Sums of the squares of each token's own gradient of log p(y) with respect to the micro pair."""
        A, B, _ = self.factors["micro"]
        totals = [np.zeros(A.shape), np.zeros(B.shape)]
        for one in self.captures:
            for t in range(len(one)):
                chosen = self.logps(one)[t, int(self.labels(one)[t])]
                for total, part in zip(totals, torch.autograd.grad(chosen, (A, B)), strict=True):
                    total += part.numpy() ** 2
        return totals

    def half_variance(self, new):
        """Mean over tokens of 1/2 Var_p of the first-order change of the logits on the way to `new`."""
        after, parts = Reference(self.captures, new, self.model), []
        for one in self.captures:
            h = self.states(one).detach()
            moved = after.states(one).detach() - h
            _, delta = torch.autograd.functional.jvp(self.model.logits, h, moved)
            delta, p = delta / (one.temperature or 1.0), self.logps(one).detach().exp()
            mean = (p * delta).sum(1, keepdim=True)
            parts.append((p * (delta - mean) ** 2).sum(1) / 2)
        return float(torch.cat(parts).mean())


class FakeRanks:
    """`world` ranks as threads that meet at every reduction."""

    def __init__(self, world, padded):
        """`padded` tokens a rank, as tensor parallelism cuts a vocabulary rounded up."""
        self.world, self._padded = world, padded
        self._slots = [None] * world
        self._barrier = threading.Barrier(world, timeout=20)
        self.reductions = 0

    def shard(self, rank, vocabulary):
        start, stop = (min(edge * self._padded, vocabulary) for edge in (rank, rank + 1))
        return Shard(start, stop, rank, self.world, lambda values: self._sum(rank, values))

    def run(self, work):
        """`work(rank)` on every rank; their results in order."""

        def guarded(rank):
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.world) as pool:
            return [future.result() for future in [pool.submit(guarded, rank) for rank in range(self.world)]]

    def _sum(self, rank, values):
        assert values.dtype == torch.float32
        assert values.is_contiguous()
        self._slots[rank] = values.clone()
        self._barrier.wait()
        assert len({slot.shape for slot in self._slots}) == 1
        values.copy_(sum(self._slots[1:], self._slots[0]))
        self.reductions += rank == 0
        self._barrier.wait()
        return values
