"""Gradients, KL and evaluation against torch autograd in float64 on the textbook formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import Model, capture, close, f32, finish, pair, rng
from head_reference import Reference as AnyReference

from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.head import BaseLogits, Batch, DenseHead, Scratch, evaluate, gradient, predicted_kl

D, V = 24, 150

W = torch.from_numpy(f32(rng(99).standard_normal((V, D)) * 0.4))
BIAS = torch.from_numpy(f32(rng(98).standard_normal(V) * 0.3))


def source(bias=None, max_bytes=1 << 26):
    return BaseLogits(DenseHead(W, bias), max_bytes=max_bytes)


def Reference(captures, weights, bias=None, rows=None):
    return AnyReference(captures, weights, Model(W, bias), rows)


CASES = {
    "plain": {},
    "anchor": {"anchor": 0.3},
    "clip": {"ratio_clip": (0.7, 1.3)},
    "clip and anchor": {"ratio_clip": (0.7, 1.3), "anchor": 0.05},
    "anchor alone": {"anchor": 1.0, "no_advantage": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", [None, pair(5, 2, 0.7)], ids=["micro", "micro and base"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
def test_gradient_equals_autograd(case, base, bias):
    captures = [capture(5, 1), capture(130, 2, 0.6), capture(40, 3, 1.7), capture(1, 4, 0.0)]
    options = dict(CASES[case])
    silent = options.pop("no_advantage", False)
    advantages = [f32(rng(i).standard_normal(len(c)) * (not silent)) for i, c in enumerate(captures)]
    weights = LoraWeights(pair(2, 1, 1.5), base)
    signal = TokenSignal(weights, advantages, **options)
    ours = finish(gradient(source(bias), Batch(captures), signal, Scratch()))
    reference = Reference(captures, weights, bias)
    loss, kl, logprob = reference.gradients(signal)
    close(ours.micro_A, reference.factors["micro"][0].grad)
    close(ours.micro_B, reference.factors["micro"][1].grad)
    if base is None:
        assert ours.base_A is None
        assert ours.base_B is None
    else:
        close(ours.base_A, reference.factors["base"][0].grad)
        close(ours.base_B, reference.factors["base"][1].grad)
    assert ours.tokens == 176
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    assert ours.mean_kl_to_base == pytest.approx(kl, rel=1e-5)
    assert ours.mean_logprob == pytest.approx(logprob, rel=1e-5)


def test_every_clipped_branch_occurs_in_the_test_above():
    one = capture(130, 2, 0.6)
    reference = Reference([one], LoraWeights(pair(2, 1, 1.5)))
    rho = (
        reference.logps(one).gather(1, reference.labels(one)[:, None])[:, 0] - torch.from_numpy(one.logprobs)
    ).exp()
    assert ((rho > 1.3).any(), (rho < 0.7).any(), ((rho > 0.7) & (rho < 1.3)).any()) == (True, True, True)


def test_zero_B_has_a_gradient_for_B_alone():
    weights = LoraWeights(dataclasses.replace(pair(2, 1), lora_B=np.zeros((D, 2), np.float32)))
    captures = [capture(20)]
    ours = finish(gradient(source(), Batch(captures), TokenSignal(weights, [np.ones(20, np.float32)]), Scratch()))
    assert np.abs(ours.micro_B).max() > 0
    assert np.abs(ours.micro_A).max() == 0
    assert ours.mean_kl_to_base == 0


@pytest.mark.parametrize("max_bytes", [0, 10_000, 1 << 26])
def test_top_k_is_exact_for_the_kept_rows_whatever_is_cached(max_bytes):
    captures = [capture(70, 1), capture(12, 2, 0.5)]
    k = 4
    kept = np.unique(
        np.concatenate(
            [np.argsort(-(c.hidden @ W.numpy().T), axis=1)[:, :k].ravel() for c in captures]
            + [c.token_ids for c in captures]
        )
    )
    assert len(kept) < V
    weights = LoraWeights(pair(2, 1), pair(3, 2))
    signal = TokenSignal(weights, [f32(rng(5).standard_normal(len(c))) for c in captures], anchor=0.1, top_k=k)
    reference = Reference(captures, weights, rows=torch.from_numpy(kept))
    reference.gradients(signal)
    cached = source(max_bytes=max_bytes)
    for _ in range(2):
        ours = finish(gradient(cached, Batch(captures), signal, Scratch()))
        close(ours.micro_A, reference.factors["micro"][0].grad)
        close(ours.base_B, reference.factors["base"][1].grad)
    whole = dataclasses.replace(signal, top_k=10 * V)
    full = Reference(captures, weights)
    full.gradients(whole)
    close(finish(gradient(cached, Batch(captures), whole, Scratch())).micro_B, full.factors["micro"][1].grad)


def test_the_cache_stays_within_its_limit_and_changes_nothing():
    limit = 64 * V * 4 * 2
    cached = source(max_bytes=limit)
    weights = LoraWeights(pair(2, 1))
    groups = [[capture(30, s), capture(90, s + 50)] for s in range(4)]
    for captures in groups + groups[::-1]:
        signal = TokenSignal(weights, [np.ones(len(c), np.float32) for c in captures])
        ours = finish(gradient(cached, Batch(captures), signal, Scratch()))
        fresh = finish(gradient(source(), Batch(captures), signal, Scratch()))
        close(ours.micro_A, fresh.micro_A, rtol=1e-6)
        assert sum(part.numel() * 4 for part in cached._kept.values()) == cached._bytes <= limit


def test_the_empirical_fisher_sums_the_squares_of_each_tokens_own_gradient():
    captures = [capture(9, 1), capture(4, 2, 0.5)]
    weights = LoraWeights(pair(2, 1, 1.5), pair(3, 2))
    signal = TokenSignal(weights, [np.zeros(len(c), np.float32) for c in captures], anchor=0.5, fisher=True)
    ours = finish(gradient(source(), Batch(captures), signal, Scratch()))
    total_A, total_B = Reference(captures, weights).fisher()
    close(ours.fisher_A, total_A)
    close(ours.fisher_B, total_B)


def test_predicted_kl_is_half_the_variance_and_the_true_kl_of_a_small_step():
    captures = [capture(70, 1), capture(20, 2, 0.5)]
    old = LoraWeights(pair(2, 1, 1.5), pair(3, 2))
    step = pair(2, 7, size=1e-4)
    new = LoraWeights(LowRank(old.micro.lora_A + step.lora_A, old.micro.lora_B + step.lora_B, 1.5), old.base)
    ours = finish(predicted_kl(source(), Batch(captures), old, new, None, Scratch()))
    before, after = Reference(captures, old), Reference(captures, new)
    kls = []
    for one in captures:
        p, q = before.logps(one), after.logps(one)
        kls.append((p.exp() * (p - q)).sum(1).detach())
    assert ours == pytest.approx(before.half_variance(new), rel=1e-5)
    assert ours == pytest.approx(float(torch.cat(kls).mean()), rel=1e-2)
    assert finish(predicted_kl(source(), Batch(captures), old, old, 8, Scratch())) == 0
    dropped = finish(predicted_kl(source(), Batch(captures), old, LoraWeights(old.micro), None, Scratch()))
    added = finish(predicted_kl(source(), Batch(captures), LoraWeights(old.micro), old, None, Scratch()))
    assert dropped > 0
    assert added > 0


def test_evaluation():
    captures = [capture(70, 1), capture(20, 2, 0.5)]
    weights = LoraWeights(pair(2, 1, 1.5), pair(3, 2))
    ours = finish(evaluate(source(BIAS), Batch(captures), weights, Scratch()))
    reference = Reference(captures, weights, BIAS)
    kls, ratios = [], []
    for index, one in enumerate(captures):
        logp, logp0 = reference.logps(one).detach(), reference.logps(one, adapted=False)
        at = reference.labels(one)[:, None]
        assert np.abs(ours.logprobs[index] - logp.gather(1, at)[:, 0].numpy()).max() < 1e-5
        assert np.abs(ours.base_logprobs[index] - logp0.gather(1, at)[:, 0].numpy()).max() < 1e-5
        kls.append((logp.exp() * (logp - logp0)).sum(1))
        ratios.append(np.linalg.norm(weights.delta(one.hidden), axis=1) / np.linalg.norm(one.hidden, axis=1))
    assert ours.mean_kl_to_base == pytest.approx(float(torch.cat(kls).mean()), rel=1e-5)
    assert ours.max_kl_to_base == pytest.approx(float(torch.cat(kls).max()), rel=1e-5)
    assert ours.mean_delta_ratio == pytest.approx(float(np.concatenate(ratios).mean()), rel=1e-5)
    assert ours.max_delta_ratio == pytest.approx(float(np.concatenate(ratios).max()), rel=1e-5)
    assert ours.finite
