"""What a policy would repeat, against counts by hand; and that "and and and" shows before anything is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import FakeRanks, Model, Reference, capture, f32, finish, pair, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.lora import LoraWeights, LowRank
from sona_stream_adapters.head import BaseLogits, Batch, DenseHead, SampledHead, Scratch, evaluate

D, V = 12, 9
W = torch.from_numpy(f32(rng(5).standard_normal((V, D)) * 0.5))
CAPTURES = [capture(30, 1, 1.0, D, V), capture(5, 2, 0.6, D, V), capture(1, 3, 0.0, D, V)]
WEIGHTS = LoraWeights(pair(2, 1, 1.5, dim=D), pair(3, 2, 0.7, dim=D))
NAMES = ("collision", "base_collision", "repeat_mass", "base_repeat_mass")


def by_hand(model):
    reference, told = Reference(CAPTURES, WEIGHTS, model), []
    for adapted in (True, False):
        rows = [reference.logps(one, adapted).detach().exp().numpy() for one in CAPTURES]
        mean = np.concatenate(rows).mean(axis=0)
        mass = [
            sum(row[t, token] for token in set(one.token_ids[max(0, t - 16) : t].tolist()))
            for one, row in zip(CAPTURES, rows, strict=True)
            for t in range(len(one))
        ]
        told.append((float((mean**2).sum()), float(np.mean(mass))))
    (collision, mass), (base_collision, base_mass) = told
    return dict(zip(NAMES, (collision, base_collision, mass, base_mass), strict=True))


def said(evaluation):
    return {name: getattr(evaluation, name) for name in NAMES}


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([None, 3.0]),
    st.sampled_from([1.0, 0.4]),
    st.sampled_from([2, 7, 64]),
    st.sampled_from([1, 2, 3]),
)
def test_repetition_is_that_of_the_predicted_distributions(soft_cap, scale, chunk, world):
    expected = pytest.approx(by_hand(Model(W, scale=scale, soft_cap=soft_cap)), rel=1e-4)
    ranks = FakeRanks(world, -(-V // world))

    def work(rank):
        shard = None if world == 1 else ranks.shard(rank, V)
        start, stop = (0, V) if shard is None else (shard.start, shard.stop)
        head = DenseHead(W[start:stop], vocab_size=V, shard=shard, scale=scale, soft_cap=soft_cap)
        return finish(evaluate(BaseLogits(head, max_bytes=0), Batch(CAPTURES, chunk=chunk), WEIGHTS, Scratch()))

    for one in ranks.run(work):
        assert said(one) == expected


def test_a_head_that_is_asked_for_logits_says_the_same():
    model = Model(W)
    head = SampledHead(
        lambda h: model.logits(h.double()).float(), lambda ids: W[ids], hidden_dim=D, vocab_size=V, top_k=2
    )
    seen = finish(evaluate(BaseLogits(head, max_bytes=0), Batch(CAPTURES), WEIGHTS, Scratch()))
    assert said(seen) == pytest.approx(by_hand(model), rel=1e-4)


def test_one_token_everywhere_is_a_collision():
    hidden = np.concatenate([one.hidden for one in CAPTURES])
    states = np.concatenate(
        [hidden, np.full((len(hidden), 1), 3.0, dtype=np.float32)], axis=1
    )  # one entry is constant
    captures = [dataclasses.replace(CAPTURES[0], hidden=states[: len(CAPTURES[0])])]
    rows = torch.cat([W, torch.zeros(V, 1)], dim=1)

    def rise(push):
        micro = LowRank(f32(np.eye(D + 1)[-1:] / 3), f32(push * (W[4] - W.mean(0)).numpy()[:, None]))
        micro = LowRank(micro.lora_A, f32(np.append(micro.lora_B, [[0.0]], axis=0)))
        head = DenseHead(rows, vocab_size=V)
        seen = finish(evaluate(BaseLogits(head, max_bytes=0), Batch(captures), LoraWeights(micro), Scratch()))
        return seen.collision - seen.base_collision

    assert rise(0.0) == pytest.approx(0.0, abs=1e-6)
    assert rise(10.0) > 0.5
