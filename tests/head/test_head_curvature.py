"""Scores, Fisher information and the constant row against torch autograd in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from head_reference import FakeRanks, Model, capture, close, f32, finish, rng

from sona_stream_adapters.head import BaseLogits, Batch, DenseHead, Scratch, curvature

D, V = 24, 150
W = torch.from_numpy(f32(rng(99).standard_normal((V, D)) * 0.4))
BIAS = torch.from_numpy(f32(rng(98).standard_normal(V) * 0.3))
CAPTURES = [capture(5, 1), capture(130, 2, 0.6), capture(40, 3, 1.7), capture(1, 4, 0.0)]


def scores_of(one, model):
    """(T, d): d log p(y_t) / d h_t of the unadapted model, each by its own backward pass."""
    h = torch.as_tensor(one.hidden).double().requires_grad_()
    logp = torch.log_softmax(model.logits(h) / (one.temperature or 1.0), dim=1)
    logp[torch.arange(len(one)), torch.as_tensor(one.token_ids).long()].sum().backward()
    return h.grad.numpy()


def measured(captures, chunk=64, shard=None, elsewhere=None, **options):
    rows = (W, BIAS) if shard is None else (W[shard.start : shard.stop], BIAS[shard.start : shard.stop])
    source = BaseLogits(DenseHead(*rows, vocab_size=V, shard=shard, **options), max_bytes=0)
    return finish(curvature(source, Batch(captures, chunk=chunk), Scratch(), elsewhere))


@pytest.mark.parametrize("options", [{}, {"scale": 0.6}, {"soft_cap": 2.5}, {"scale": 1.4, "soft_cap": 5.0}])
def test_scores_and_information_equal_autograd(options):
    ours, model = measured(CAPTURES, **options), Model(W, BIAS, **options)
    rows = [scores_of(one, model) for one in CAPTURES]
    close(ours.scores, np.stack([each.mean(axis=0) for each in rows]), rtol=2e-5)
    information = np.concatenate(rows).T @ np.concatenate(rows) / 176
    vectors, values = ours.outputs.vectors.astype(np.float64), ours.outputs.values.astype(np.float64)
    close(f32(vectors.T @ (values[:, None] * vectors)), information, rtol=2e-5)  # d is less than the kept pairs
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-5)
    assert list(values) == sorted(values, reverse=True)
    assert ours.tokens == 176


@pytest.mark.parametrize("captures", [CAPTURES, CAPTURES[:1]], ids=["more tokens than d", "fewer"])
def test_constant_is_the_ridge_regression_of_one(captures):
    hidden = np.concatenate([one.hidden for one in captures]).astype(np.float64)
    ridge = 1e-2 * (hidden**2).sum() / D
    row = np.linalg.solve(hidden.T @ hidden + ridge * np.eye(D), hidden.sum(axis=0))
    ours = measured(captures)
    close(ours.constant, row / (row @ hidden.mean(axis=0)), rtol=1e-4)
    assert ours.rms == pytest.approx(np.sqrt((hidden**2).mean()))


@pytest.mark.parametrize("captures", [CAPTURES, CAPTURES[:1]], ids=["more tokens than d", "fewer"])
@pytest.mark.parametrize("texts", [1, 60])
def test_contrast_is_the_ridge_regression_of_one_here_and_of_zero_elsewhere(captures, texts):
    hidden = np.concatenate([one.hidden for one in captures]).astype(np.float64)
    elsewhere = rng(7).standard_normal((texts, D)).astype(np.float32)
    ridge = 1e-2 * (hidden**2).sum() / D
    both = hidden.T @ hidden + len(hidden) / texts * elsewhere.astype(np.float64).T @ elsewhere
    row = np.linalg.solve(both + ridge * np.eye(D), hidden.sum(axis=0))
    ours = measured(captures, elsewhere=elsewhere)
    close(ours.contrast, row / (row @ hidden.mean(axis=0)), rtol=1e-4)
    assert measured(captures).contrast is None


def test_slices_change_nothing():
    whole, cut = measured(CAPTURES), measured(CAPTURES, chunk=7)
    close(cut.scores, whole.scores)
    close(cut.outputs.values, whole.outputs.values)


def test_directions_that_are_not_kept_are_worth_their_mean():
    wide = rng(1).standard_normal((V, 80)).astype(np.float32)
    ours = finish(
        curvature(
            BaseLogits(DenseHead(torch.from_numpy(wide)), max_bytes=0),
            Batch([capture(100, 1, dim=80, vocabulary=V)]),
            Scratch(),
        )
    )
    rows = scores_of(capture(100, 1, dim=80, vocabulary=V), Model(torch.from_numpy(wide)))
    values = np.linalg.eigvalsh(rows.T @ rows / 100)[::-1]
    assert ours.outputs.vectors.shape == (32, 80)
    close(ours.outputs.values, values[:32], rtol=1e-4)
    assert ours.outputs.rest == pytest.approx(values[32:].mean(), rel=1e-4)


def test_ranks_that_share_the_vocabulary_find_the_same():
    ranks = FakeRanks(3, 56)
    whole = measured(CAPTURES)
    for ours in ranks.run(lambda rank: measured(CAPTURES, shard=ranks.shard(rank, V))):
        close(ours.scores, whole.scores, rtol=2e-5)
        close(ours.outputs.values, whole.outputs.values, rtol=1e-4)


def test_inputs_are_the_second_moment_of_the_states():
    inputs = measured(CAPTURES).inputs
    hidden = np.concatenate([one.hidden for one in CAPTURES]).astype(np.float64)
    vectors = inputs.vectors.astype(np.float64)
    found = inputs.rest * np.eye(D) + vectors.T @ ((inputs.values - inputs.rest)[:, None] * vectors)
    close(f32(found), hidden.T @ hidden / len(hidden), rtol=2e-5)
