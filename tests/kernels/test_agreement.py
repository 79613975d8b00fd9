"""Both implementations of every kernel against a float64 reference written out here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.kernels import load

BOTH = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]


@pytest.fixture(params=BOTH)
def kernels(request):
    return load(compiled=request.param)


shapes = st.tuples(st.integers(1, 7), st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**31))


def draw(shape):
    n, d, r, seed = shape
    random = np.random.default_rng(seed)
    make = lambda *size: random.standard_normal(size).astype(np.float32)  # noqa: E731
    return make(n, d), make(r, d), make(r, d), make(n, d)


def close(found, expected, tolerance=2e-5):
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)


def exact(*arrays):
    return [array.astype(np.float64) for array in arrays]


@settings(max_examples=40, deadline=None)
@given(shape=shapes)
@pytest.mark.parametrize("compiled", BOTH)
def test_apply(compiled, shape):
    kernels = load(compiled=compiled)
    X, A, Bt, _ = draw(shape)
    X64, A64, B64 = exact(X, A, Bt)
    expected = X64 + (X64 @ A64.T) @ B64
    out, square = kernels.lora_batch(X, A, Bt)
    close(out, expected)
    close(square, (X64**2).sum())
    row, square = kernels.lora_row(X[0].copy(), A, Bt)
    close(row, expected[0])
    close(square, (X64[0] ** 2).sum())
    into = np.full_like(X, np.nan)
    kernels.lora_batch_into(X, A, Bt, into)
    assert out.dtype == into.dtype == row.dtype == np.float32
    np.testing.assert_array_equal(into, out)
    kernels.lora_row_into(X[0].copy(), A, Bt, into[0])
    close(into[0], expected[0])


@settings(max_examples=25, deadline=None)
@given(shape=shapes)
@pytest.mark.parametrize("compiled", BOTH)
def test_many_adapters_in_one_batch(compiled, shape):
    kernels = load(compiled=compiled)
    X, A, Bt, _ = draw(shape)
    stack_A, stack_B = np.stack([A, -A, 2 * A]), np.stack([Bt, Bt, -Bt])
    index = np.random.default_rng(shape[3]).integers(-1, 3, len(X))
    out = np.empty_like(X)
    kernels.lora_many(X, index, stack_A, stack_B, out)
    for i, k in enumerate(index):
        if k < 0:
            assert out[i].tobytes() == X[i].tobytes()
        else:
            close(out[i], X[i] + (X[i].astype(float) @ stack_A[k].T) @ stack_B[k])


def test_gradients_are_those_of_finite_differences(kernels):
    X, A, Bt, G = draw((3, 9, 2, 5))

    def loss(A, Bt):
        return float((G.astype(float) * (X.astype(float) @ A.T @ Bt)).sum())

    dA, dBt = kernels.lora_gradients(G, X, A, Bt)
    step = 1e-6
    for found, which in ((dA, 0), (dBt, 1)):
        for at in np.ndindex(found.shape):
            factors = exact(A, Bt)
            factors[which][at] += step
            up = loss(*factors)
            factors[which][at] -= 2 * step
            assert found[at] == pytest.approx((up - loss(*factors)) / (2 * step), rel=1e-4, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(shape=shapes)
@pytest.mark.parametrize("compiled", BOTH)
def test_fisher(compiled, shape):
    X, A, Bt, G = draw(shape)
    fisher_A, fisher_Bt = np.ones_like(A), np.ones_like(Bt)
    load(compiled=compiled).fisher_accumulate(G, X, A, Bt, fisher_A, fisher_Bt)
    X64, A64, B64, G64 = exact(X, A, Bt, G)
    expected_A, expected_B = np.ones_like(A64), np.ones_like(A64)
    for x, g in zip(X64, G64, strict=True):
        expected_A += np.outer((B64 @ g) ** 2, x**2)
        expected_B += np.outer((A64 @ x) ** 2, g**2)
    close(fisher_A, expected_A, 1e-4)
    close(fisher_Bt, expected_B, 1e-4)


def log_softmax(logits, temperature):
    z = logits.astype(np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 300), st.floats(0.1, 3.0), st.integers(0, 2**31))
@pytest.mark.parametrize("compiled", BOTH)
def test_reductions(compiled, T, V, temperature, seed):
    kernels = load(compiled=compiled)
    random = np.random.default_rng(seed)
    logits = (10 * random.standard_normal((T, V))).astype(np.float32)
    base = (logits + random.standard_normal((T, V))).astype(np.float32)
    ids = random.integers(0, V, T)
    log_p, log_q = log_softmax(logits, temperature), log_softmax(base, temperature)
    p = np.exp(log_p)
    picked = log_p[np.arange(T), ids]
    np.testing.assert_allclose(kernels.log_probabilities(logits, ids, temperature), picked, atol=2e-3, rtol=1e-4)
    out = np.empty_like(logits)
    kernels.softmax_minus_onehot(logits, ids, temperature, out)
    onehot = np.zeros_like(p)
    onehot[np.arange(T), ids] = 1
    np.testing.assert_allclose(out, p - onehot, atol=2e-4)
    kl = (p * (log_p - log_q)).sum(axis=1)
    np.testing.assert_allclose(kernels.kl_rows(logits, base, temperature), kl, atol=2e-3, rtol=2e-3)
    mean = (p * base).sum(axis=1, keepdims=True)
    variance = (p * (base - mean) ** 2).sum(axis=1)
    np.testing.assert_allclose(kernels.variance_rows(logits, base, temperature), variance, atol=5e-3, rtol=5e-3)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, exponent=st.integers(-20, 18))
@pytest.mark.parametrize("compiled", BOTH)
def test_codec_is_within_half_a_step(compiled, shape, exponent):
    kernels = load(compiled=compiled)
    X = draw(shape)[0] * np.float32(10.0**exponent)
    codes = np.empty(X.shape, np.int8)
    scales = np.array([kernels.quantize_row(x, code)[0] for x, code in zip(X, codes, strict=True)], np.float32)
    back = np.full_like(X, np.nan)
    for code, scale, row in zip(codes, scales, back, strict=True):
        kernels.dequantize_row(code, scale, row)
    assert (np.abs(back - X) <= 0.5001 * scales[:, None] + 1e-38).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_sum_of_squares(kernels, bad):
    X, A, Bt, _ = draw((3, 33, 2, 0))
    for at in (0, 31, 32):
        x = X[0].copy()
        x[at] = bad
        assert not np.isfinite(kernels.lora_row(x, A, Bt)[1])
        assert not np.isfinite(kernels.quantize_row(x, np.empty(33, np.int8))[1])
        Y = X.copy()
        Y[1, at] = bad
        assert not np.isfinite(kernels.lora_batch(Y, A, Bt)[1])


def test_zero_vectors(kernels):
    zero = np.zeros(8, np.float32)
    codes = np.ones(8, np.int8)
    assert kernels.quantize_row(zero, codes) == (0.0, 0.0)
    assert not codes.any()
    found, cosines = kernels.cosine_topk(np.eye(8, dtype=np.float32), zero, 3)
    assert len(found) == 3
    np.testing.assert_array_equal(cosines, 0)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, k=st.integers(0, 9))
@pytest.mark.parametrize("compiled", BOTH)
def test_cosine_topk(compiled, shape, k):
    kernels = load(compiled=compiled)
    X, _, _, G = draw(shape)
    C = X / np.linalg.norm(X, axis=1, keepdims=True)
    found, cosines = kernels.cosine_topk(C, G[0].copy(), k)
    expected = C.astype(float) @ G[0] / np.linalg.norm(G[0].astype(float))
    close(kernels.scores(C, G[0].copy()), C.astype(float) @ G[0])
    assert len(found) == min(k, len(C)) == len(set(found.tolist()))
    close(cosines, np.sort(expected)[::-1][: len(found)])
    close(cosines, expected[found])


@settings(max_examples=25, deadline=None)
@given(shape=shapes, k=st.integers(1, 4))
@pytest.mark.parametrize("compiled", BOTH)
def test_kmeans_step(compiled, shape, k):
    X = draw(shape)[0]
    random = np.random.default_rng(shape[3])
    scores, weights = random.random((len(X), k), np.float32), random.random(len(X), np.float32)
    sums, counts = np.zeros((k, X.shape[1]), np.float32), np.zeros(k, np.float32)
    quality = load(compiled=compiled).kmeans_step(X, weights, scores, sums, counts)
    expected = np.zeros((k, X.shape[1]))
    for x, weight, row in zip(X, weights, scores, strict=True):
        expected[row.argmax()] += weight * x.astype(float)
    close(sums, expected)
    assert counts.sum() == pytest.approx(weights.sum(), rel=1e-5)
    assert quality == pytest.approx(float((scores.max(axis=1) * weights).sum()), rel=1e-5)


def test_published_read_only_weights_share_the_compiled_body():
    kernels = load(compiled=True)
    X, A, Bt, _ = draw((1, 16, 2, 1))
    expected = kernels.lora_row(X[0].copy(), A, Bt)[0]
    for array in (A, Bt):
        array.setflags(write=False)
    np.testing.assert_array_equal(kernels.lora_row(X[0].copy(), A, Bt)[0], expected)
    assert len(kernels.lora_row.signatures) == 1
