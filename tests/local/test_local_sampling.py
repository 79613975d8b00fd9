from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.local.sampling import SamplingState, draw

V = 500


def rows(n, seed=0, scale=3.0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, V)).astype(np.float32) * scale)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_greedy_is_the_argmax_and_logprobs_are_true():
    logits = rows(4)
    temperatures = [0.0, 0.5, 1.0, 2.0]
    drawn = draw(logits, [SamplingState(temperature=t, top_logprobs=3) for t in temperatures])
    assert drawn[0].token_id == int(logits[0].argmax())
    for row, (token, t) in enumerate(zip(drawn, temperatures, strict=True)):
        shown = log_softmax(logits[row].numpy())
        policy = log_softmax(logits[row].numpy() / (t or 1.0))
        assert token.logprob == pytest.approx(shown[token.token_id], abs=1e-5)
        assert token.policy_logprob == pytest.approx(policy[token.token_id], abs=1e-5)
        assert [i for i, _ in token.top] == list(np.argsort(-shown)[:3])


def test_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    state = SamplingState(temperature=1.0, rng=np.random.default_rng(1))
    counts = np.bincount([draw(logits, [state])[0].token_id for _ in range(4000)], minlength=4)
    expected = 4000 * np.array([0.5, 0.3, 0.15, 0.05])
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees, p = .001


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-9, 0.009])
def test_a_temperature_next_to_nothing_draws_the_likeliest_and_its_logprobs_are_finite(temperature, top_p):
    logits = rows(4)
    states = [SamplingState(temperature=temperature, top_p=top_p, rng=np.random.default_rng(7)) for _ in range(4)]
    drawn = draw(logits, states)
    assert [token.token_id for token in drawn] == logits.argmax(dim=1).tolist()
    assert all(np.isfinite([token.logprob, token.policy_logprob]).all() for token in drawn)


def test_a_seed_does_not_depend_on_the_company():
    logits = rows(3)
    alone = draw(logits[1:2], [SamplingState(temperature=1.0, rng=np.random.default_rng(7))])[0].token_id
    states = [SamplingState(temperature=1.0, rng=np.random.default_rng(s)) for s in (1, 7, 3)]
    assert draw(logits, states)[1].token_id == alone


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), top_p=st.floats(0.01, 0.999), scale=st.floats(0.01, 8))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(seed, top_p, scale):
    logits = rows(1, seed, scale)
    p = np.exp(log_softmax(logits[0].numpy()))
    order = np.argsort(-p)
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    nucleus = set(order[before < top_p + 1e-5].tolist())  # a token is in as long as those before it fall short
    state = SamplingState(temperature=1.0, top_p=top_p, rng=np.random.default_rng(seed))
    assert all(draw(logits, [state])[0].token_id in nucleus for _ in range(3))


def test_penalties_change_the_draw_but_not_the_policy():
    logits = torch.tensor([[3.0, 2.9, 0.0]])
    state = SamplingState(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.5)
    drawn = [draw(logits, [state])[0] for _ in range(3)]
    # 3.0 | 2.0 2.9 | 2.0 1.9
    assert [token.token_id for token in drawn] == [0, 1, 0]
    expected = log_softmax(logits[0].numpy())
    assert [t.policy_logprob for t in drawn] == pytest.approx([expected[0], expected[1], expected[0]], abs=1e-6)
