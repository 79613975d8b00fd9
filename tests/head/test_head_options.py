"""Every option of a head, in any combination and shape, against float64 autograd."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import Model, Reference, capture, close, f32, finish, pair, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.head import (
    BaseLogits,
    Batch,
    CapturedTokens,
    DenseHead,
    SampledHead,
    Scratch,
    evaluate,
    gradient,
    predicted_kl,
)

quick = settings(max_examples=25, deadline=None)


@dataclasses.dataclass(frozen=True)
class Case:
    """One head, some captures and a signal."""

    dim: int
    vocabulary: int
    padding: int
    dtype: torch.dtype
    biased: bool
    scale: float
    soft_cap: float | None
    tokens: tuple[int, ...]
    temperatures: tuple[float, ...]
    ranks: tuple[int, int]
    anchor: float
    clip: tuple[float, float] | None
    chunk: int
    block_bytes: int
    seed: int

    @property
    def rows(self):
        """(V + padding, d); the padding is wild, so that a row too many is seen."""
        W = rng(self.seed).standard_normal((self.vocabulary + self.padding, self.dim)) * 0.5
        W[self.vocabulary :] *= 100
        return torch.from_numpy(f32(W)).to(self.dtype)

    @property
    def bias(self):
        values = rng(self.seed + 1).standard_normal(self.vocabulary + self.padding) * 0.5
        return torch.from_numpy(f32(values)).to(self.dtype) if self.biased else None

    @property
    def options(self):
        return {"scale": self.scale, "soft_cap": self.soft_cap}

    @property
    def head(self):
        return DenseHead(
            self.rows, self.bias, vocab_size=self.vocabulary, block_bytes=self.block_bytes, **self.options
        )

    @property
    def model(self):
        bias = None if self.bias is None else self.bias[: self.vocabulary].float()
        return Model(self.rows[: self.vocabulary].float(), bias, **self.options)

    @property
    def captures(self):
        made = [
            capture(n, self.seed + i, t, self.dim, self.vocabulary)
            for i, (n, t) in enumerate(zip(self.tokens, self.temperatures, strict=True))
        ]
        # Half-precision states are what a half-precision model has.
        rounded = [torch.from_numpy(c.hidden).to(self.dtype).float().numpy() for c in made]
        return [dataclasses.replace(c, hidden=h) for c, h in zip(made, rounded, strict=True)]

    @property
    def weights(self):
        micro, base = self.ranks
        return LoraWeights(
            pair(micro, self.seed + 7, 1.5, dim=self.dim),
            pair(base, self.seed + 8, 0.7, dim=self.dim) if base else None,
        )

    def signal(self, **more):
        advantages = [f32(rng(self.seed + i).standard_normal(n)) for i, n in enumerate(self.tokens)]
        return TokenSignal(self.weights, advantages, anchor=self.anchor, ratio_clip=self.clip, **more)

    def batch(self, captures=None):
        return Batch(self.captures if captures is None else captures, chunk=self.chunk)


@st.composite
def cases(draw, dtypes=(torch.float32, torch.bfloat16, torch.float16)):
    answers = draw(st.integers(1, 3))
    dim, vocabulary = draw(st.integers(1, 20)), draw(st.integers(2, 60))
    return Case(
        dim=dim,
        vocabulary=vocabulary,
        padding=draw(st.integers(0, 9)),
        dtype=draw(st.sampled_from(dtypes)),
        biased=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.25, 2.5])),
        soft_cap=draw(st.sampled_from([None, 1.5, 30.0])),
        tokens=tuple(draw(st.lists(st.integers(1, 12), min_size=answers, max_size=answers))),
        temperatures=tuple(
            draw(st.lists(st.sampled_from([0.0, 0.6, 1.0, 1.7]), min_size=answers, max_size=answers))
        ),
        ranks=(draw(st.integers(1, 3)), draw(st.integers(0, 4))),
        anchor=draw(st.sampled_from([0.0, 0.3])),
        clip=draw(st.sampled_from([None, (0.7, 1.3), (0.0, 2.0)])),
        chunk=draw(st.sampled_from([1, 5, 64])),
        block_bytes=draw(st.sampled_from([1, 400, 1 << 20])),
        seed=draw(st.integers(0, 10_000)),
    )


def floor(case):
    """Below this everything has cancelled: a token's own gradient is of order one."""
    return 0.1 * sum(case.tokens)


def check_gradient(case, ours, signal, rtol=2e-5, rows=None):
    reference = Reference(case.captures, case.weights, case.model, rows)
    loss, kl, logprob = reference.gradients(signal)
    pairs = [(ours.micro_A, ours.micro_B)] + ([] if case.weights.base is None else [(ours.base_A, ours.base_B)])
    for (dA, dB), (A, B, _) in zip(pairs, reference.factors.values(), strict=True):
        close(dA, A.grad, rtol, floor(case))
        close(dB, B.grad, rtol, floor(case))
    assert ours.tokens == sum(case.tokens)
    assert ours.loss == pytest.approx(loss, rel=1e-4, abs=1e-4)
    assert ours.mean_kl_to_base == pytest.approx(kl, rel=1e-4, abs=1e-5)
    assert ours.mean_logprob == pytest.approx(logprob, rel=1e-4, abs=1e-5)


@quick
@given(cases())
def test_gradient(case):
    source = BaseLogits(case.head, max_bytes=0)
    check_gradient(case, finish(gradient(source, case.batch(), case.signal(), Scratch())), case.signal())


@quick
@given(cases())
def test_the_head_describes_the_models_logits(case):
    hidden = torch.from_numpy(case.captures[0].hidden)
    expected = case.model.logits(hidden.double()).float()
    torch.testing.assert_close(case.head.logits(hidden), expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=12, deadline=None)
@given(cases())
def test_fisher_sums(case):
    case = dataclasses.replace(case, tokens=tuple(min(n, 4) for n in case.tokens))
    ours = finish(gradient(BaseLogits(case.head, max_bytes=0), case.batch(), case.signal(fisher=True), Scratch()))
    total_A, total_B = Reference(case.captures, case.weights, case.model).fisher()
    close(ours.fisher_A, total_A, 1e-4, floor(case))
    close(ours.fisher_B, total_B, 1e-4, floor(case))
    check_gradient(case, ours, case.signal())


@quick
@given(cases())
def test_evaluation(case):
    source = BaseLogits(case.head, max_bytes=0)
    check_evaluation(case, finish(evaluate(source, case.batch(), case.weights, Scratch())))


def check_evaluation(case, ours):
    reference, kls = Reference(case.captures, case.weights, case.model), []
    for index, one in enumerate(case.captures):
        logp, logp0 = reference.logps(one).detach(), reference.logps(one, adapted=False)
        at = reference.labels(one)[:, None]
        np.testing.assert_allclose(ours.logprobs[index], logp.gather(1, at)[:, 0].numpy(), rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(ours.base_logprobs[index], logp0.gather(1, at)[:, 0], rtol=1e-4, atol=2e-5)
        kls.append((logp.exp() * (logp - logp0)).sum(1))
    assert ours.mean_kl_to_base == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4, abs=1e-5)
    assert ours.max_kl_to_base == pytest.approx(float(torch.cat(kls).max()), rel=1e-4, abs=1e-5)
    assert ours.finite


@quick
@given(cases())
def test_predicted_kl(case):
    old, step = case.weights, pair(case.ranks[0], 3, size=1e-2, dim=case.dim)
    micro = LowRank(old.micro.lora_A + step.lora_A, old.micro.lora_B + step.lora_B, old.micro.scaling)
    new = LoraWeights(micro, old.base)
    ours = finish(predicted_kl(BaseLogits(case.head, max_bytes=0), case.batch(), old, new, None, Scratch()))
    expected = Reference(case.captures, old, case.model).half_variance(new)
    assert ours == pytest.approx(expected, rel=1e-3, abs=1e-9)


@quick
@given(cases(), st.sampled_from([1, 3, 17]), st.sampled_from([1, 64, 1 << 20]))
def test_memory_slices_change_nothing(case, chunk, block_bytes):
    sliced = dataclasses.replace(case, chunk=chunk, block_bytes=block_bytes)
    ours, other = (
        finish(gradient(BaseLogits(c.head, max_bytes=0), c.batch(), c.signal(), Scratch())) for c in (case, sliced)
    )
    for name in ("micro_A", "micro_B") + (("base_A", "base_B") if case.ranks[1] else ()):
        close(getattr(other, name), getattr(ours, name), 1e-5, floor(case))


@quick
@given(cases())
def test_tensors_in_the_models_dtype_are_taken_as_they_are(case):
    """As an engine holds them, and mixed with arrays that came back from a client, read-only ones too."""
    arrays = case.captures
    for one in arrays:
        one.hidden.flags.writeable = False
    tensors = [
        CapturedTokens(
            one.request_id,
            torch.tensor(one.hidden).to(case.dtype),
            torch.tensor(one.token_ids),
            torch.tensor(one.logprobs),
            one.temperature,
        )
        for one in arrays
    ]
    source = BaseLogits(case.head, max_bytes=1 << 20)
    keys = [one.request_id.encode() for one in arrays]
    for captures, names in ((tensors, keys), (tensors[:1] + arrays[1:], None)):
        batch = Batch(captures, chunk=case.chunk, keys=names)
        check_gradient(case, finish(gradient(source, batch, case.signal(), Scratch())), case.signal())


def sampled(case):
    rows, bias = case.rows, case.bias

    def model_logits(hidden):
        assert hidden.shape[1] == case.dim
        whole = case.model.logits(hidden.double()).float()
        return torch.cat([whole, torch.full((len(hidden), case.padding), 1e4)], 1)

    return SampledHead(
        model_logits,
        lambda ids: rows[ids],
        hidden_dim=case.dim,
        vocab_size=case.vocabulary,
        bias=bias,
        top_k=2,
        block_bytes=case.block_bytes,
        **case.options,
    )


@quick
@given(cases())
def test_a_sampled_head_with_every_row_is_exact(case):
    source = BaseLogits(sampled(case), max_bytes=0)
    signal = case.signal(top_k=case.vocabulary)
    check_gradient(case, finish(gradient(source, case.batch(), signal, Scratch())), signal)
    check_evaluation(case, finish(evaluate(source, case.batch(), case.weights, Scratch())))


@quick
@given(cases(), st.sampled_from([None, 1, 4]), st.sampled_from([0, 1 << 20]))
def test_kept_rows_are_exact_for_their_vocabulary(case, top_k, max_bytes):
    """None: the whole vocabulary of a head at hand, the head's own k of a sampled one."""
    for head, k in ((case.head, top_k), (sampled(case), top_k or 2)):
        if k is None:
            continue
        kept = set()
        for one in case.captures:
            kept |= set(one.token_ids.tolist())
            logits = case.head.logits(torch.from_numpy(one.hidden))
            kept |= set(logits.topk(min(k, case.vocabulary)).indices.flatten().tolist())
        source = BaseLogits(head, max_bytes=max_bytes)
        for _ in range(2):
            ours = finish(gradient(source, case.batch(), case.signal(top_k=top_k), Scratch()))
            check_gradient(case, ours, case.signal(), rows=torch.tensor(sorted(kept)))


def test_the_same_text_at_another_temperature_is_another_question():
    """What is kept of the last batch is its rows, never its temperatures or log-probabilities."""
    W = torch.from_numpy(f32(rng(1).standard_normal((50, 8))))
    source, weights = BaseLogits(DenseHead(W), max_bytes=1 << 20), LoraWeights(pair(2, 1, dim=8))
    for temperature in (1.0, 0.5):
        one = capture(9, 3, temperature, 8, 50)
        signal = TokenSignal(weights, [np.ones(9, np.float32)], top_k=50 - 1, ratio_clip=(0.5, 2.0))
        ours = finish(gradient(source, Batch([one]), signal, Scratch()))
        fresh = finish(gradient(BaseLogits(DenseHead(W), max_bytes=0), Batch([one]), signal, Scratch()))
        close(ours.micro_B, fresh.micro_B)
        assert ours.loss == pytest.approx(fresh.loss)
