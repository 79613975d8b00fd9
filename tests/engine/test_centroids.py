"""Centroids under random histories: rows stay unit vectors, and their products are what the rows say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.engine.centroids import WARD_LIMIT, Centroids
from sona_stream.kernels import load

BOTH = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]


def unit(v):
    return (v / np.linalg.norm(v)).astype(np.float32)


def check(made, atol):
    m, exact = len(made), made.rows.astype(float) @ made.rows.T.astype(float)
    np.testing.assert_allclose(exact.diagonal(), 1.0, atol=1e-5)
    np.fill_diagonal(exact, -1.0)
    for i in range(m):
        j, cosine = made.twin(i)
        if m > 1:
            assert cosine == pytest.approx(exact[i].max(), abs=atol)
            assert exact[i, j] == pytest.approx(exact[i].max(), abs=atol)
        else:
            assert cosine < -1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**31), st.lists(st.integers(0, 9), max_size=120))
@pytest.mark.parametrize("compiled", BOTH)
def test_products_follow_every_history(compiled, dim, limit, seed, history):
    random = np.random.default_rng(seed)
    made = Centroids(dim, limit, load(compiled=compiled))
    for act in history:
        u, m = unit(random.standard_normal(dim)), len(made)
        cosines = made.closest(u)[1] if m else None
        if m < limit and (act < 4 or not m):
            assert made.append(u, cosines if act % 2 else None) == m
        elif act < 8 or m < 2:
            i, share = int(random.integers(m)), random.uniform(1.1, 500)
            was = made.rows[i].copy()
            norm = made.join(i, share, u, cosines)
            np.testing.assert_allclose(made.rows[i], unit(share * was + u), atol=1e-5)
            assert norm == pytest.approx(np.linalg.norm(share * was + u), rel=1e-4)
        else:
            i, j = (int(place) for place in random.choice(m, 2, replace=False))
            a, b = random.uniform(1, 2), random.uniform(3, 9)
            merged, last = unit(a * made.rows[i] + b * made.rows[j]), made.rows[-1].copy()
            made.merge(i, j, a, b)
            assert len(made) == m - 1
            np.testing.assert_allclose(made.rows[j if i == m - 1 else i], merged, atol=1e-5)
            if m - 1 not in (i, j):
                np.testing.assert_array_equal(made.rows[j], last)
    check(made, 1e-4)


@pytest.mark.parametrize("compiled", BOTH)
def test_rounding_does_not_pile_up(compiled):
    """Ten thousand strangers forced into a full bank."""
    random = np.random.default_rng(3)
    made = Centroids(64, 8, load(compiled=compiled))
    for _ in range(8):
        made.append(unit(random.standard_normal(64)))
    for _ in range(10_000):
        u = unit(random.standard_normal(64))
        nearest, cosines = made.closest(u)
        made.join(nearest, 20.0, u, cosines)
    check(made, 1e-5)


def test_too_many_for_pairs():
    random = np.random.default_rng(3)
    made = Centroids(8, 2 * WARD_LIMIT, load(compiled=True))
    for count in range(WARD_LIMIT + 1):
        assert (made.twin(0)[1] >= -1) == (count > 1)
        made.append(unit(random.standard_normal(8)))
    ones, cosines = np.ones(len(made)), made.closest(made.rows[0])[1]
    assert made.twin(0)[1] < -1
    assert made.cheapest_merge(ones, ones, cosines, 1.0) is None
    made.join(3, 2.0, made.rows[0].copy(), cosines)
    assert len(made.rows) == WARD_LIMIT + 1
