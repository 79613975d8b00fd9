"""What of a fit is served: nothing that answers it has not seen speak against, all that they support."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_learner_life import gain_from, learner_of, request
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner.evidence import Evidence, agreements, trust_of

NUMBERS = st.floats(-3, 3, allow_nan=False, width=32)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=64))
def test_sums_are_those_of_the_formula(pairs):
    advantages, gains = map(np.asarray, zip(*pairs, strict=True))
    x = advantages * (gains - gains.mean())
    found = Evidence().plus(agreements(list(advantages), list(gains)))
    assert found.products == pytest.approx(x.sum(), abs=1e-9)
    assert found.squares == pytest.approx((x**2).sum(), abs=1e-9)
    assert abs(found.t) <= np.sqrt(len(pairs)) + 1e-6


def test_ratings_that_do_not_depend_on_the_answers_have_mean_zero_and_spread_one():
    """Whatever the adapter does to the answers: here it favours long ones, by far."""
    rng, found = np.random.default_rng(0), []
    gains = rng.exponential(size=96) * np.linspace(-1, 4, 96)
    ratings = rng.random(96)
    for _ in range(2000):
        evidence = Evidence()
        shuffled = rng.permutation(ratings - ratings.mean())
        for batch in range(0, 96, 16):
            evidence = evidence.plus(agreements(list(shuffled[batch:][:16]), list(gains[batch:][:16])))
        found.append(evidence.t)
    assert abs(np.mean(found)) < 0.1
    assert 0.8 < np.std(found) < 1.15


def test_corrections_count_by_the_gain_alone():
    assert agreements([None, None], [0.5, -0.25]) == [0.5, -0.25]
    assert agreements([1.0], [0.5]) == []  # one judged answer has nothing to be compared with
    assert agreements([1.0, None, -1.0], [0.5, 2.0, 0.1]) == pytest.approx([0.2, 2.0, 0.2])


def test_trust_rises_with_evidence_alone():
    assert Evidence().trust(0.25) == 0.25
    assert Evidence().plus([-1.0] * 20).trust(0.25) == 0.25
    shares = [Evidence(t, 1.0).trust(0.25) for t in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert shares == sorted(shares)
    assert Evidence(2.0, 1.0).trust(0.0) == pytest.approx(0.5)
    assert shares[-1] > 0.95


def test_corrections_are_trusted_as_they_stand():
    corrected = Evidence().counting(correction=True)
    assert corrected.trust(0.25) == 1.0
    assert corrected.counting(correction=False).trust(0.25) == pytest.approx(0.625)
    assert Evidence().counting(correction=False).trust(0.25) == 0.25


def test_kept_beside_the_moments():
    evidence = Evidence().plus([0.5, 0.25])
    kept = evidence.beside({"count": np.ones(1, dtype=np.float32)}, 0.75)
    assert Evidence.of(kept) == evidence
    assert trust_of(kept) == 0.75
    assert set(kept) == {"count", "evidence", "trust"}
    assert Evidence.of({}) == Evidence()
    assert trust_of({}) == 1.0


async def test_the_served_share_is_kept_and_the_fit_goes_on_behind_it():
    """After a restart a step starts from the whole fit again, not from what was served of it."""
    world = World(ToyHost(7))
    settings = LearningSettings(replay_every=16, replay_steps=30, replay_tokens=200, least_trust=0.25)
    rates = Rates(micro_lora_lr=2e-3, quality_threshold=0.0)
    async with learner_of(world, settings, rates=rates) as learner:
        for i in range(64):
            request_id, tokens = world.ask(prompt=(i % 12, i % 12 + 1), adapter=learner.resolve(request()))
            await learner.learn(world.judge(request_id, float(np.isin(tokens, [1, 2, 3]).mean())), wait=True)
            await learner.settle()
        state = learner._state
        line = next(one for one in state.versions.lines() if str(one.key).endswith("/*"))
        fit, trust = state.fitted(line.served), trust_of(line.served.moments)
        assert 0.25 < trust < 1.0
        assert "evidence" in (await world.store.adapter(str(line.key), line.served.version)).moments
        np.testing.assert_allclose(line.served.weights.micro.lora_B, trust * fit.micro.lora_B, rtol=1e-5)
    async with learner_of(world, settings, rates=rates) as learner:
        again = next(one for one in learner._state.versions.lines() if str(one.key).endswith("/*"))
        np.testing.assert_array_equal(learner._state.fitted(again.served).micro.lora_B, fit.micro.lora_B)


async def test_meaningless_ratings_move_less_where_trust_must_be_earned():
    seeds = (0, 1, 7, 8)
    free = [await gain_from(seed, permuted=True, least_trust=1.0) for seed in seeds]
    earned = [await gain_from(seed, permuted=True, least_trust=0.25) for seed in seeds]
    assert np.abs(earned).mean() < 0.7 * np.abs(free).mean()
    assert await gain_from(7, permuted=False, least_trust=0.25) > 0.15
