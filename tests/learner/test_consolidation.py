"""The fold against dense numpy: singular values of M C^(1/2), nothing of it shared with the product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.learner.consolidation import empty_base, fold, merged
from sona_stream.lora import LoraWeights, LowRank, Spectrum


def f32(x):
    return np.ascontiguousarray(x, np.float32)


def spectrum_of(C, k):
    values, vectors = np.linalg.eigh(C)
    values, vectors = values[::-1], vectors.T[::-1]
    rest = float(values[k:].mean()) if k < len(values) else 0.0
    return Spectrum(f32(vectors[:k]), f32(values[:k]), rest)


def dense(spectrum):
    V, d = spectrum.vectors.astype(float), spectrum.vectors.shape[1]
    return spectrum.rest * np.eye(d) + V.T @ np.diag(spectrum.values - spectrum.rest) @ V


def root(C):
    values, vectors = np.linalg.eigh(C)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def map_of(pair):
    return pair.scaling * pair.lora_B.astype(float) @ pair.lora_A.astype(float)


def whole(weights):
    return map_of(weights.micro) + (0.0 if weights.base is None else map_of(weights.base))


def world(seed, d=20, k=6, base=4, micro=2):
    r = np.random.default_rng(seed)
    H = r.standard_normal((400, d)) * r.lognormal(0, 1, d) + r.standard_normal(d)
    C = spectrum_of(H.T @ H / len(H), k)
    pair = lambda n, s: LowRank(f32(r.standard_normal((n, d))), f32(r.standard_normal((d, n))), s)  # noqa: E731
    return LoraWeights(pair(micro, 1.3), None if base is None else pair(base, 0.6)), C


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([None, 3, 5]))
def test_the_fold_is_the_best_of_its_rank(seed, rank, base):
    weights, C = world(seed, base=base)
    M, C_root = whole(weights), root(dense(C))
    U, sizes, Vt = np.linalg.svd(M @ C_root)
    best = (U[:, :rank] * sizes[:rank]) @ Vt[:rank] @ np.linalg.inv(C_root)
    folded = fold(weights, C, rank)
    scale = np.linalg.norm(M @ C_root)
    assert np.linalg.norm((map_of(folded.base) - best) @ C_root) < 1e-5 * scale
    assert folded.error == pytest.approx(float((sizes[rank:] ** 2).sum() / (sizes**2).sum()), abs=1e-6)
    left = np.linalg.norm((M - map_of(folded.base)) @ C_root) ** 2 / scale**2
    assert left == pytest.approx(folded.error, abs=1e-6)
    assert folded.base.lora_A.shape == (rank, 20)
    assert folded.base.lora_B.shape == (20, rank)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_are_white_and_the_room_left_is_used(seed):
    weights, C = world(seed, base=None)
    folded = fold(weights, C, 5)
    A = folded.base.lora_A.astype(float)
    assert np.allclose(A @ dense(C) @ A.T, np.eye(5), atol=1e-4)
    assert folded.rank == 2
    assert folded.error == 0.0
    assert not folded.base.lora_B[:, 2:].any()


def test_a_bias_is_kept_where_a_plain_decomposition_cuts_it():
    """The guide line of the design: rank 1 of a bias and a random part; the bias row is short."""
    r = np.random.default_rng(0)
    d, mean = 64, np.full(64, 2.0)
    H = mean + r.standard_normal((5000, d))
    C = spectrum_of(H.T @ H / len(H), 8)
    A = np.stack([mean / (mean @ mean), r.standard_normal(d) / np.sqrt(d)])
    B = np.stack([r.standard_normal(d), 0.2 * r.standard_normal(d)], axis=1)
    weights = LoraWeights(LowRank(f32(A), f32(B)))
    M = B @ A
    U, sizes, Vt = np.linalg.svd(M)
    plain = sizes[0] * np.outer(U[:, 0], Vt[0])

    def error(kept):
        return ((H @ (M - kept).T) ** 2).sum() / ((H @ M.T) ** 2).sum()

    folded = fold(weights, C, 1)
    assert error(map_of(folded.base)) < 0.25
    assert error(plain) > 0.75
    assert error(map_of(folded.base)) == pytest.approx(folded.error, rel=0.1)


def test_nothing_to_fold_leaves_nothing():
    _, C = world(1)
    empty = LoraWeights(LowRank(f32(np.ones((2, 20))), f32(np.zeros((20, 2)))))
    folded = fold(empty, C, 4)
    assert (folded.error, folded.rank) == (0.0, 0)
    assert not folded.base.lora_B.any()
    assert np.array_equal(folded.base.lora_A, empty_base(C, 4).lora_A)


def test_rank_may_exceed_what_the_spectrum_or_the_space_holds():
    weights, C = world(2, d=6, k=2, base=None)
    base = fold(weights, C, 9).base
    assert base.lora_A.shape == (9, 6)
    assert np.isfinite(base.lora_A).all()
    assert np.allclose(map_of(base), whole(weights), rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_running_mean_of_spectra_keeps_the_trace_and_the_loud_directions(seed, share):
    (_, one), (_, other) = world(seed), world(seed + 1)
    both = merged(one, other, share)
    exact = (1 - share) * dense(one) + share * dense(other)
    assert np.trace(dense(both)) == pytest.approx(np.trace(exact), rel=1e-4)
    top = both.vectors[0].astype(float)
    assert top @ exact @ top == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-4)
    V = both.vectors.astype(float)
    assert np.allclose(V @ V.T, np.eye(len(V)), atol=1e-4)
