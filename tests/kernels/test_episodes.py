"""The search of the memory of episodes, both implementations, against sums of Python's integers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.kernels import load

BOTH = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]
sizes = st.tuples(st.integers(1, 30), st.integers(1, 300), st.integers(0, 2**31))


def drawn(size):
    """-> codes (n, e), inverse lengths (n,), a query (e,), its inverse length, two disjoint lists, their links"""
    n, e, seed = size
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, (n, e)).astype(np.int8)
    codes[random.integers(n)] = codes[0]  # equal cosines
    q = random.integers(-127, 128, e).astype(np.int8)
    inverse = np.array([1 / max(1.0, math.sqrt(sum(int(x) ** 2 for x in row))) for row in codes], np.float32)
    order = random.permutation(n)
    cut = int(random.integers(0, n + 1))
    lists = order[:cut].tolist(), order[cut:].tolist()
    following = np.full(n, -1, np.int32)
    for one in lists:
        following[one[:-1]] = one[1:]
    return codes, inverse, q, 1 / max(1.0, math.sqrt(sum(int(x) ** 2 for x in q))), lists, following


@settings(max_examples=60, deadline=None)
@given(size=sizes, k=st.integers(0, 9), least=st.floats(-1, 1))
@pytest.mark.parametrize("compiled", BOTH)
def test_nearest_in_list(compiled, size, k, least):
    codes, inverse, q, inverse_q, lists, following = drawn(size)
    for one in lists:
        head = one[0] if one else -1
        found, cosines = load(compiled=compiled).nearest_in_list(
            codes, inverse, following, head, q, inverse_q, least, k
        )
        exact = {
            i: sum(int(a) * int(b) for a, b in zip(codes[i], q, strict=True)) * float(inverse[i]) * inverse_q
            for i in one
        }
        near = [i for i in one if exact[i] >= least + 1e-5]
        assert set(found.tolist()) <= set(one), "rows of another list"
        assert len(found) == len(set(found.tolist())) >= min(k, len(near))
        assert all(exact[i] >= least - 1e-5 for i in found.tolist())
        np.testing.assert_allclose(cosines, [exact[i] for i in found.tolist()], atol=1e-5)
        assert (np.diff(cosines) <= 0).all()
        if len(found) and len(found) == k:
            left = [exact[i] for i in one if i not in found]
            assert max(left, default=-2) <= cosines[-1] + 1e-5


@pytest.mark.parametrize("compiled", BOTH)
def test_of_equals_the_one_met_first(compiled):
    codes = np.ones((4, 8), np.int8)
    inverse = np.full(4, 1 / math.sqrt(8), np.float32)
    following = np.array([-1, 0, 1, 2], np.int32)
    found, cosines = load(compiled=compiled).nearest_in_list(
        codes, inverse, following, 3, codes[0], 1 / math.sqrt(8), 0.5, 3
    )
    assert found.tolist() == [3, 2, 1]
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.parametrize("compiled", BOTH)
def test_both_find_the_same(compiled):
    codes, inverse, q, inverse_q, lists, following = drawn((30, 256, 3))
    head = max(lists, key=len)[0]
    left, right = (
        load(compiled=one).nearest_in_list(codes, inverse, following, head, q, inverse_q, -1.0, 30)
        for one in (True, compiled)
    )
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_allclose(left[1], right[1], atol=1e-7)
