"""What pulls an adapter back to an earlier one, against torch autograd in float64 on the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_reference import FakeRanks, Model, Reference, capture, close, f32, finish, pair, rng

from sona_stream.lora import LoraWeights, LowRank
from sona_stream_adapters.head import BaseLogits, Batch, DenseHead, Scratch, penalty, predicted_kl

D, V = 24, 150
W = torch.from_numpy(f32(rng(99).standard_normal((V, D)) * 0.4))
BIAS = torch.from_numpy(f32(rng(98).standard_normal(V) * 0.3))
CAPTURES = [capture(5, 1), capture(70, 2, 0.6), capture(40, 3, 1.7), capture(1, 4, 0.0)]
HEADS = {
    "plain": {},
    "bias": {"bias": BIAS},
    "soft cap": {"soft_cap": 3.0, "scale": 0.7},
}


def source(**options):
    return BaseLogits(DenseHead(W, options.pop("bias", None), **options), max_bytes=1 << 24)


def textbook(captures, reference, current, **options):
    """(loss, Reference of `current` whose factors have gradients): 1/2 Var of the slope times the change."""
    model = Model(W, options.get("bias"), options.get("scale", 1.0), options.get("soft_cap"))
    before, after = Reference(captures, reference, model), Reference(captures, current, model)
    total = torch.zeros((), dtype=torch.float64)
    for one in captures:
        h = before.states(one).detach()
        p = before.logps(one).detach().exp()
        moved = after.states(one) - h
        if model.soft_cap is None:
            change = model.scale * moved @ W.double().T
        else:
            raw = h @ W.double().T
            slope = 1 - torch.tanh(raw / model.soft_cap) ** 2
            change = model.scale * slope * (moved @ W.double().T)
        change = change / (one.temperature or 1.0)
        mean = (p * change).sum(1, keepdim=True)
        total = total + (p * (change - mean) ** 2).sum() / 2
    total.backward()
    return float(total.detach()), after


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("bases", [(None, None), (None, 5), (5, 5), (5, None)], ids=str)
def test_penalty_equals_autograd(head, bases):
    old, new = bases
    reference = LoraWeights(pair(2, 1, 1.5), None if old is None else pair(old, 3, 0.8))
    current = LoraWeights(pair(2, 2, 1.5), None if new is None else pair(new, 4, 0.8))
    ours = finish(penalty(source(**HEADS[head]), Batch(CAPTURES), reference, current, None, Scratch()))
    loss, expected = textbook(CAPTURES, reference, current, **HEADS[head])
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    close(ours.micro_A, expected.factors["micro"][0].grad)
    close(ours.micro_B, expected.factors["micro"][1].grad)
    assert (ours.base_A is None) == (ours.base_B is None) == (new is None)
    if new is not None:
        close(ours.base_A, expected.factors["base"][0].grad)
        close(ours.base_B, expected.factors["base"][1].grad)
    assert ours.tokens == 116


def test_loss_is_what_predicted_kl_says():
    one, other = LoraWeights(pair(2, 1)), LoraWeights(pair(2, 2), pair(4, 3))
    value = finish(penalty(source(), Batch(CAPTURES), one, other, None, Scratch())).loss
    kl = finish(predicted_kl(source(), Batch(CAPTURES), one, other, None, Scratch()))
    assert value / 116 == pytest.approx(kl, rel=1e-6)


def test_nothing_pulls_where_nothing_changed():
    weights = LoraWeights(pair(2, 1), pair(4, 3))
    ours = finish(penalty(source(), Batch(CAPTURES), weights, weights, None, Scratch()))
    assert ours.loss == 0
    assert not any(x.any() for x in (ours.micro_A, ours.micro_B, ours.base_A, ours.base_B))


def test_another_split_of_the_same_function_is_not_pulled():
    """What a consolidation does: the micro pair's function moves into the base pair."""
    micro = pair(2, 1)
    empty = LowRank(micro.lora_A, np.zeros_like(micro.lora_B))
    turned = LowRank(f32(micro.lora_A[::-1] * 2), f32(micro.lora_B[:, ::-1] / 2))
    ours = finish(
        penalty(source(), Batch(CAPTURES), LoraWeights(micro), LoraWeights(empty, turned), None, Scratch())
    )
    far = finish(penalty(source(), Batch(CAPTURES), LoraWeights(micro), LoraWeights(empty), None, Scratch()))
    assert ours.loss < 1e-10 * far.loss
    assert np.abs(ours.base_B).max() < 1e-5 * np.abs(far.micro_B).max()


@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0, "scale": 0.4}], ids=["", "soft cap"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_vocabulary_over_ranks_equals_one_vocabulary(options, top_k):
    reference, current = LoraWeights(pair(2, 1), pair(3, 3)), LoraWeights(pair(2, 2), pair(3, 4))
    ranks = FakeRanks(3, 52)

    def ask(shard):
        rows = W if shard is None else W[shard.start : shard.stop]
        head = DenseHead(rows, vocab_size=V, shard=shard, **options)
        return finish(penalty(BaseLogits(head, max_bytes=0), Batch(CAPTURES), reference, current, top_k, Scratch()))

    alone, parts = ask(None), ranks.run(lambda rank: ask(ranks.shard(rank, V)))
    for one in parts:
        assert one.loss == pytest.approx(alone.loss, rel=1e-5)
        for name in ("micro_A", "micro_B", "base_A", "base_B"):
            close(getattr(one, name), getattr(alone, name))
            assert np.array_equal(getattr(one, name), getattr(parts[0], name))
