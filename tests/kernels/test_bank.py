"""The pattern bank's kernels, both implementations, against the definitions in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.kernels import load

BOTH = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]
sizes = st.tuples(st.integers(1, 12), st.integers(1, 70), st.integers(0, 2**31))


def unit(X):
    return X / np.linalg.norm(X, axis=-1, keepdims=True)


def drawn(size):
    """-> centroids (m, d), a unit vector (d,), the generator"""
    m, d, seed = size
    random = np.random.default_rng(seed)
    X = unit(random.standard_normal((m + 1, d))).astype(np.float32)
    return X[:m].copy(), X[m].copy(), random


@settings(max_examples=40, deadline=None)
@given(size=sizes)
@pytest.mark.parametrize("compiled", BOTH)
def test_closest(compiled, size):
    C, q, _ = drawn(size)
    out = np.full(len(C), np.nan)
    found = load(compiled=compiled).closest(C, q, out)
    np.testing.assert_allclose(out, C.astype(float) @ q, atol=2e-6)
    assert found == out.argmax()


@pytest.mark.parametrize("compiled", BOTH)
def test_the_first_of_equals_is_closest(compiled):
    C = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    assert load(compiled=compiled).closest(C, np.array([0, 0, 1, 0], np.float32), np.empty(8)) == 4


@settings(max_examples=60, deadline=None)
@given(size=sizes, a=st.floats(0, 600), b=st.floats(0, 600), small=st.booleans())
@pytest.mark.parametrize("compiled", BOTH)
def test_blend(compiled, size, a, b, small):
    C, v, random = drawn(size)
    m = len(C)
    i = int(random.integers(m))
    wanted = a * C[i].astype(float) + b * v.astype(float)
    norm = float(np.linalg.norm(wanted))
    if norm <= 1e-2 * (a + b) or norm < 1e-3:
        return
    g = m - 1 if small else m + 2
    gram = np.full((g, g), -1.0)
    gram[:m, :m] = (C.astype(float) @ C.T)[:g, :g]
    diagonal = gram.diagonal().copy()
    before, others = gram.copy(), [k for k in range(m) if k != i]
    kept = C[others].copy()
    found = load(compiled=compiled).blend(C, i, a, v, b, gram, C.astype(float) @ v)
    assert found == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(C[i], wanted / norm, atol=1e-4)
    np.testing.assert_array_equal(C[others], kept)
    np.testing.assert_array_equal(gram.diagonal(), diagonal)
    if small:
        np.testing.assert_array_equal(gram, before)
        return
    np.testing.assert_allclose(gram[i, others], (C.astype(float) @ C[i])[others], atol=2e-4)
    np.testing.assert_allclose(gram, gram.T, atol=1e-12)


@pytest.mark.parametrize("compiled", BOTH)
def test_what_cancels_is_left_alone(compiled):
    C = np.eye(3, dtype=np.float32)
    before, gram = C.copy(), np.full((3, 3), -1.0)
    assert load(compiled=compiled).blend(C, 1, 2.0, -C[1], 2.0, gram, np.array([0.0, -1.0, 0.0])) == 0.0
    np.testing.assert_array_equal(C, before)
    assert (gram == -1).all()


def spread_of(members):
    """Sum of squared distances to the mean."""
    return float(((members - members.mean(axis=0)) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(2, 12), st.integers(0, 2**31), st.floats(1.0, 1e5))
@pytest.mark.parametrize("compiled", BOTH)
def test_the_cheapest_merge_is_wards_over_the_members_themselves(compiled, m, d, seed, units):
    random = np.random.default_rng(seed)
    clusters = [
        unit(
            random.standard_normal(d) + random.uniform(0.1, 2) * random.standard_normal((random.integers(1, 6), d))
        )
        for _ in range(m)
    ]
    stranger = unit(random.standard_normal(d))
    means = np.array([members.mean(axis=0) for members in clusters])
    lengths = np.linalg.norm(means, axis=1)
    C = unit(means)

    def cost(one, other):
        return spread_of(np.concatenate([one, other])) - spread_of(one) - spread_of(other)

    pairs = {(i, j): cost(clusters[i], clusters[j]) for i in range(m) for j in range(i + 1, m)}
    cheapest = min(pairs.values())
    join = min(cost(members, stranger[None]) for members in clusters)
    if abs(cheapest - join) < 1e-6:
        return
    room = np.pad(C @ C.T, (0, 3), constant_values=-1.0)
    np.fill_diagonal(room, -1.0)
    weights = units * np.array([float(len(members)) for members in clusters])
    # Columns of rows, as the bank keeps them: not contiguous.
    columns = np.stack([weights, lengths], axis=1)
    found = load(compiled=compiled).cheapest_merge(room, columns[:, 0], columns[:, 1], C @ stranger, units)
    if cheapest < join:
        assert pairs[found] == pytest.approx(cheapest, abs=1e-6)
    else:
        assert tuple(found) == (-1, -1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=40))
@pytest.mark.parametrize("compiled", BOTH)
def test_attention_weight(compiled, weights):
    found = load(compiled=compiled).attention_weight(np.array(weights))
    total = math.fsum(abs(w) for w in weights)
    if len(weights) < 2 or total == 0:
        assert found == 1.0
        return
    shares = [abs(w) / total for w in weights]
    entropy = -math.fsum(s * math.log(s) for s in shares if s > 0)
    assert found == pytest.approx(1 - entropy / (2 * math.log(len(weights))), abs=1e-9)
