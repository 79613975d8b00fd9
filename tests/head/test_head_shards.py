"""A vocabulary over ranks equals one vocabulary. Ranks are threads that meet at every reduction; no process group
was ever used here.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import FakeRanks, capture, close, f32, finish, pair, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.errors import HostError
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.head import (
    BaseLogits,
    Batch,
    DenseHead,
    Scratch,
    Shard,
    evaluate,
    gradient,
    predicted_kl,
)

D, V = 12, 40
W = torch.from_numpy(f32(rng(5).standard_normal((V, D)) * 0.5 + 0.3))
BIAS = torch.from_numpy(f32(rng(6).standard_normal(V)))
CAPTURES = [capture(7, 1, 1.0, D, V), capture(12, 2, 0.6, D, V), capture(1, 3, 0.0, D, V)]
WEIGHTS = LoraWeights(pair(2, 1, 1.5, dim=D), pair(3, 2, 0.7, dim=D))


def head_of(shard, dtype, **options):
    """As an engine lays it out: this rank's tokens, then rows that only pad."""
    start, stop = (0, V) if shard is None else (shard.start, shard.stop)
    padded = torch.full((stop - start + 5, D), 77.0)
    padded[: stop - start] = W[start:stop]
    bias = torch.full((stop - start + 5,), 77.0)
    bias[: stop - start] = BIAS[start:stop]
    return DenseHead(padded.to(dtype), bias.to(dtype), vocab_size=V, shard=shard, **options)


def both(world, padded, dtype, options, ask, max_bytes=0):
    """(the unsharded answer, every rank's answer)"""
    ranks = FakeRanks(world, padded)

    def work(rank):
        head = head_of(ranks.shard(rank, V), dtype, **options)
        return ask(BaseLogits(head, max_bytes=max_bytes), Scratch())

    alone = ask(BaseLogits(head_of(None, dtype, **options), max_bytes=max_bytes), Scratch())
    return alone, ranks.run(work)


layouts = st.tuples(st.sampled_from([1, 2, 3]), st.integers(14, 24)).map(
    lambda drawn: (drawn[0], {1: V, 2: 20 + drawn[1] % 21, 3: drawn[1]}[drawn[0]])
)
options = st.fixed_dictionaries(
    {"scale": st.sampled_from([1.0, 0.4]), "soft_cap": st.sampled_from([None, 3.0])},
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
few = settings(max_examples=12, deadline=None)


@few
@given(layouts, dtypes, options, st.sampled_from([None, 1, 3, 25]), st.booleans(), st.sampled_from([5, 64]))
def test_gradient(layout, dtype, chosen, top_k, fisher, chunk):
    signal = TokenSignal(
        WEIGHTS,
        [f32(rng(i).standard_normal(len(c))) for i, c in enumerate(CAPTURES)],
        anchor=0.3,
        ratio_clip=(0.7, 1.3),
        top_k=top_k,
        fisher=fisher,
    )
    alone, ranks = both(
        *layout,
        dtype,
        chosen,
        lambda s, scratch: finish(gradient(s, Batch(CAPTURES, chunk=chunk), signal, scratch)),
    )
    names = ["micro_A", "micro_B", "base_A", "base_B"] + (["fisher_A", "fisher_B"] if fisher else [])
    for one in ranks:
        for name in names:
            close(getattr(one, name), getattr(alone, name), 1e-5)
            assert np.array_equal(getattr(one, name), getattr(ranks[0], name))
        for name in ("loss", "mean_kl_to_base", "mean_logprob"):
            assert getattr(one, name) == pytest.approx(getattr(alone, name), rel=1e-5, abs=1e-6)
        assert one.tokens == 20


@few
@given(layouts, dtypes, options)
def test_evaluation_and_predicted_kl(layout, dtype, chosen):
    alone, ranks = both(
        *layout, dtype, chosen, lambda s, scratch: finish(evaluate(s, Batch(CAPTURES), WEIGHTS, scratch))
    )
    for one in ranks:
        assert one.mean_kl_to_base == pytest.approx(alone.mean_kl_to_base, rel=1e-5, abs=1e-6)
        for own, whole in zip(one.logprobs + one.base_logprobs, alone.logprobs + alone.base_logprobs, strict=True):
            np.testing.assert_allclose(own, whole, rtol=1e-5, atol=1e-5)
    micro = LowRank(WEIGHTS.micro.lora_A, WEIGHTS.micro.lora_B + np.float32(0.01), 1.5)
    new = LoraWeights(micro, WEIGHTS.base)
    for top_k in (None, 2):
        alone, ranks = both(
            *layout,
            dtype,
            chosen,
            lambda s, scratch, k=top_k: finish(predicted_kl(s, Batch(CAPTURES), WEIGHTS, new, k, scratch)),
        )
        assert ranks == [pytest.approx(alone, rel=1e-4)] * layout[0]


def test_ranks_agree_whether_they_describe_the_model():
    """Only the last rank's rows are wrong: all must say so, or they part ways."""
    hidden = torch.from_numpy(CAPTURES[0].hidden)
    logits = torch.cat([hidden @ W.T + BIAS, torch.full((7, 4), 1e6)], 1)
    ranks = FakeRanks(3, 14)

    def work(rank):
        head = head_of(ranks.shard(rank, V), torch.float32)
        wrong = logits.clone()
        wrong[:, -5] += 1.0  # the last token of the vocabulary
        return head.difference(hidden, logits), head.difference(hidden, wrong)

    answers = ranks.run(work)
    assert len(set(answers)) == 1
    right, wrong = answers[0]
    assert right < 1e-5
    assert wrong == pytest.approx(1.0 / float((hidden @ W.T + BIAS).abs().max()), rel=0.2)


def test_a_rank_without_a_single_token():
    """40 tokens padded to 3 ranks of 20: the last one holds none, and kept rows may all lie elsewhere."""
    signal = TokenSignal(WEIGHTS, [np.ones(len(c), np.float32) for c in CAPTURES], anchor=0.1, fisher=True)
    for top_k in (None, 2):
        asked = dataclasses.replace(signal, top_k=top_k)
        alone, ranks = both(
            3, 20, torch.float32, {}, lambda s, c, a=asked: finish(gradient(s, Batch(CAPTURES), a, c))
        )
        close(ranks[2].micro_B, alone.micro_B)
        close(ranks[2].fisher_B, alone.fisher_B)


def test_what_is_kept_between_calls_changes_nothing():
    signal = TokenSignal(WEIGHTS, [np.ones(len(c), np.float32) for c in CAPTURES], top_k=3)

    def thrice(source, scratch):
        whole = dataclasses.replace(signal, top_k=None)
        return [finish(gradient(source, Batch(CAPTURES), s, scratch)) for s in (signal, whole, signal)]

    alone, ranks = both(2, 20, torch.float32, {}, thrice, max_bytes=1 << 20)
    for one in ranks:
        for own, expected in zip(one, alone, strict=True):
            close(own.micro_A, expected.micro_A)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (lambda: Shard(5, 4), "no range"),
        (lambda: Shard(0, 4, rank=2, world=2, all_reduce=lambda x: x), "rank 2"),
        (lambda: Shard(0, 4, rank=0, world=2), "all_reduce"),
    ],
)
def test_a_shard_that_makes_no_sense(shard, message):
    with pytest.raises(ValueError, match=message):
        shard()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": V + 1}, "rows for 41 tokens"),
        ({"shard": Shard(0, V - 1)}, "of a vocabulary of 40"),
        ({"shard": Shard(0, V + 3)}, "of a vocabulary of 40"),
        ({"bias": BIAS[:-1]}, "lm_head.bias has 39 rows"),
        ({"scale": 0.0}, "logit scale"),
        ({"soft_cap": float("nan")}, "soft cap"),
    ],
)
def test_a_head_that_makes_no_sense(options, message):
    with pytest.raises(HostError, match=message):
        DenseHead(W, **options)
    with pytest.raises(HostError, match="float matrix"):
        DenseHead(torch.zeros(4, 4, dtype=torch.int8))
