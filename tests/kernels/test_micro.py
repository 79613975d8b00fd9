"""The micro-LoRA's lesson and step, both implementations, against the formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.kernels import BROKEN, FLAT, MOVED, UNTOUCHED, load

BOTH = [pytest.param(True, id="compiled"), pytest.param(False, id="numpy")]
RATES = np.array([0.02, 0.01, 0.02, 1e-3])
shapes = st.tuples(st.integers(1, 5), st.integers(2, 70), st.integers(1, 2), st.integers(0, 2**31))


class State:
    """Everything that one step reads and writes, drawn at random."""

    def __init__(self, shape):
        n, d, r, seed = shape
        random = np.random.default_rng(seed)

        def make(*size):
            return random.standard_normal(size).astype(np.float32)

        self.X, self.push = make(n, d), make(n, d)
        self.A, self.Bt, self.mean_A, self.mean_Bt = make(r, d), make(r, d), make(r, d), make(r, d)
        factor = random.standard_normal((r, r + 1))
        self.seen, self.guard = factor @ factor.T, 0.1 * np.eye(r)
        self.running = random.uniform(0.5, 2.0, 3)
        self.out_A, self.out_Bt = np.full((r, d), np.nan, np.float32), np.full((r, d), np.nan, np.float32)

    def step(self, compiled, length=0.1, max_ratio=1e9, first=False):
        return load(compiled=compiled).micro_step(
            self.X, self.push, self.A, self.Bt, self.mean_A, self.mean_Bt, self.seen, self.guard, self.running,
            RATES, length, max_ratio, first, self.out_A, self.out_Bt,
        )  # fmt: skip

    def arrays(self):
        return {name: array.copy() for name, array in vars(self).items()}


def in_float64(state, length, max_ratio, first):
    """The same step, written down anew: -> what `State.arrays` should hold afterwards."""
    was = {name: array.astype(np.float64) for name, array in state.arrays().items()}
    X, G, A, Bt = was["X"], was["push"], was["A"], was["Bt"]
    n, r = len(X), len(A)
    moment = sum(np.outer(A @ x, A @ x) for x in X) / n
    if first:
        was["seen"] = moment + 0.1 * np.trace(moment) / r * np.eye(r)
    else:
        was["seen"] += RATES[2] * (moment - was["seen"])
    size = sum(x @ x for x in X) / n
    damped = lambda M, more: M + (RATES[3] * np.trace(M) / r + more) * np.eye(r)  # noqa: E731
    metric_Bt = damped(was["seen"], 1e-12) + was["guard"]
    metric_A = damped(Bt @ Bt.T, 1e-4 * size)
    gradient_A = np.linalg.solve(metric_A, sum(np.outer(Bt @ g, x) for g, x in zip(G, X, strict=True))) / size
    gradient_Bt = np.linalg.solve(metric_Bt, sum(np.outer(A @ x, g) for g, x in zip(G, X, strict=True)))
    moves = []
    for at, (name, gradient) in enumerate((("mean_A", gradient_A), ("mean_Bt", gradient_Bt))):
        was[name] += RATES[0] * (gradient - was[name])
        was["running"][at] += RATES[1] * ((gradient**2).mean() - was["running"][at])
        moves.append(was[name] / np.sqrt(was["running"][at]))
    change = X @ A.T @ moves[1] + X @ moves[0].T @ Bt
    change = np.sqrt((change**2).sum() / (X**2).sum())
    was["running"][2] = max(change, 0.9 * was["running"][2] + 0.1 * change)
    step = length / was["running"][2]
    was["out_A"], was["out_Bt"] = A + step * moves[0], Bt + step * moves[1]
    ratio = np.sqrt(((X @ was["out_A"].T @ was["out_Bt"]) ** 2).sum() / (X**2).sum())
    was["out_Bt"] *= min(1.0, max_ratio / ratio)
    return was


@settings(max_examples=60, deadline=None)
@given(shape=shapes, length=st.floats(1e-4, 1.0), max_ratio=st.floats(0.01, 10.0), first=st.booleans())
@pytest.mark.parametrize("compiled", BOTH)
def test_a_step(compiled, shape, length, max_ratio, first):
    state = State(shape)
    expected = in_float64(state, length, max_ratio, first)
    assert state.step(compiled, length, max_ratio, first) == MOVED
    for name, found in state.arrays().items():
        scale = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(found, expected[name], atol=5e-4 * scale, rtol=0, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, steps=st.integers(1, 12))
def test_both_stay_together_over_many_steps(shape, steps):
    one, other = State(shape), State(shape)
    for number in range(steps):
        for state, compiled in ((one, True), (other, False)):
            assert state.step(compiled, 0.05, 2.0, number == 0) == MOVED
            state.A, state.Bt = state.out_A.copy(), state.out_Bt.copy()
    for name, found in one.arrays().items():
        expected = other.arrays()[name]
        np.testing.assert_allclose(found, expected, atol=1e-3 * max(1.0, np.abs(expected).max()), err_msg=name)


@pytest.mark.parametrize("compiled", BOTH)
def test_inputs_that_say_nothing_leave_everything_as_it_was(compiled):
    for value in (0.0, np.nan, np.inf, 1e30):
        state = State((2, 9, 2, 1))
        state.X[:] = value
        before = state.arrays()
        assert state.step(compiled) == UNTOUCHED
        for name, array in state.arrays().items():
            np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("compiled", BOTH)
@pytest.mark.parametrize("rank", [1, 2])
def test_no_direction_and_no_number(compiled, rank):
    state = State((1, 9, rank, 1))
    for array in (state.push, state.mean_A, state.mean_Bt, state.running):
        array[:] = 0
    assert state.step(compiled) == FLAT
    for value in (np.nan, np.inf, 3e38):
        state = State((1, 9, rank, 1))
        state.push[:] = value
        assert state.step(compiled) == BROKEN


@settings(max_examples=40, deadline=None)
@given(shape=shapes)
@pytest.mark.parametrize("compiled", BOTH)
def test_a_push_is_the_weighted_mean_gap_to_the_output(compiled, shape):
    state = State(shape)
    weights = np.random.default_rng(shape[3]).standard_normal(len(state.X)).astype(np.float32)
    x, out = state.push[0].copy(), np.empty_like(state.push[0])
    load(compiled=compiled).micro_push(x, state.X, weights, state.A, state.Bt, out)
    x64, A64, B64 = (array.astype(np.float64) for array in (x, state.A, state.Bt))
    adapted = x64 + B64.T @ (A64 @ x64)
    expected = np.mean([w * (a - adapted) for w, a in zip(weights.astype(float), state.X, strict=True)], axis=0)
    np.testing.assert_allclose(out, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))
