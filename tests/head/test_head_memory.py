"""Tokens that remembered answers decided: nothing is learned from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import capture, close, f32, finish, pair, rng

from sona_stream.lora import LoraWeights, TokenSignal
from sona_stream_adapters.head import BaseLogits, Batch, DenseHead, Scratch, curvature, gradient

D, V = 24, 150
WEIGHTS = LoraWeights(pair(2, 1), pair(3, 2, scaling=0.5))


def marked(memory, **options):
    one = capture(len(memory), **options)
    return dataclasses.replace(one, memory=f32(memory))


def without(one):
    """The same answer of the tokens that are left alone."""
    own = one.memory <= 0.5
    rows = {name: getattr(one, name)[own] for name in ("token_ids", "hidden", "logprobs", "adapter_versions")}
    return dataclasses.replace(one, memory=None, **rows), own


@pytest.fixture(scope="module")
def head():
    return DenseHead(torch.from_numpy(f32(rng(5).standard_normal((V, D)) * 0.3)))


@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("clip", [None, (0.7, 1.3)])
@pytest.mark.parametrize("chunk", [2, 64])
def test_a_gradient_is_that_of_the_other_tokens(head, anchor, clip, chunk):
    memory = [[0.0, 0.51, 0.2, 1.0, 0.5], [0.9, 0.0, 0.7]]
    whole = [marked(one, seed=i, temperature=t) for i, (one, t) in enumerate(zip(memory, (1.0, 0.6), strict=True))]
    cut = [without(one) for one in whole]
    advantages = [f32(rng(i + 9).standard_normal(len(one))) for i, one in enumerate(whole)]
    signal = TokenSignal(WEIGHTS, advantages, anchor=anchor, ratio_clip=clip, fisher=True)
    left = dataclasses.replace(signal, advantages=[a[own] for a, (_, own) in zip(advantages, cut, strict=True)])
    ours = finish(gradient(BaseLogits(head, max_bytes=0), Batch(whole, chunk=chunk), signal, Scratch()))
    theirs = finish(gradient(BaseLogits(head, max_bytes=0), Batch([one for one, _ in cut]), left, Scratch()))
    for name in ("micro_A", "micro_B", "base_A", "base_B", "fisher_A", "fisher_B"):
        close(getattr(ours, name), getattr(theirs, name))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.tokens == 8


def test_marks_that_decide_nothing_change_nothing(head):
    signal = TokenSignal(WEIGHTS, [f32(rng(1).standard_normal(5))], anchor=0.3)
    plain = finish(gradient(BaseLogits(head, max_bytes=0), Batch([capture(5)]), signal, Scratch()))
    marks = marked([0.0, 0.5, 0.2, 0.1, 0.0])
    for memory in (marks, dataclasses.replace(marks, memory=torch.zeros(5))):
        same = finish(gradient(BaseLogits(head, max_bytes=0), Batch([memory]), signal, Scratch()))
        np.testing.assert_array_equal(same.micro_A, plain.micro_A)
        np.testing.assert_array_equal(same.micro_B, plain.micro_B)


def test_curvature_is_that_of_the_other_tokens(head):
    whole = [marked([0.0, 0.9, 0.2, 1.0, 0.3]), marked([0.8, 0.0, 0.0], seed=2)]
    ours = finish(curvature(BaseLogits(head, max_bytes=0), Batch(whole), Scratch()))
    theirs = finish(curvature(BaseLogits(head, max_bytes=0), Batch([without(one)[0] for one in whole]), Scratch()))
    close(ours.scores, theirs.scores)
    close(ours.outputs.values, theirs.outputs.values)
    nothing = finish(curvature(BaseLogits(head, max_bytes=0), Batch([marked([1.0, 0.9])]), Scratch()))
    assert not nothing.scores.any()
    assert np.isfinite(nothing.outputs.values).all()
