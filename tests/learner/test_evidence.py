"""What of a fit is served: a part that must grow with the evidence that ratings are about the answers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner_life import gain_from, learner_of, request
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner.evidence import _COMMON, Evidence, _counts, dependence, trust_of
from sona_stream.lora import Spectrum

ALIKE = np.arange(12, dtype=np.int32)
"""Tokens of answers that do not differ in form"""


def answers_with(direction, n, seed, strength):
    """Scores (n, 6) in a loud metric, and ratings that follow them along `direction` as strongly as asked; of
    tokens that have nothing to do with it.
    """
    rng = np.random.default_rng(seed)
    matrix = np.diag([9.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    scores = (rng.standard_normal((n, 6)) * np.sqrt(np.diag(matrix))).astype(np.float32)
    ratings = strength * scores @ np.asarray(direction, dtype=np.float32) + rng.standard_normal(n)
    spectrum = Spectrum(np.eye(6, dtype=np.float32), np.diag(matrix).astype(np.float32), 0.0)
    return ratings, list(scores), [rng.integers(0, 40, rng.integers(8, 48)) for _ in range(n)], spectrum


def test_ratings_that_do_not_depend_on_the_answers_prove_nothing():
    drawn = [answers_with([0, 0, 1, 0, 0, 0], 48, seed, 0.0) for seed in range(400)]
    found = np.asarray([dependence(*one, 0.03) for one in drawn])
    assert -0.5 < np.median(found) < 0.7  # the larger one of two
    assert np.mean(found > 3.0) < 0.04
    trusts = [Evidence(z, 48).trust(0.0) for z in found]
    assert np.mean(trusts) < 0.06


def test_ratings_that_do_are_found_and_the_more_surely_the_more_there_are():
    few, many = (
        np.median([dependence(*answers_with([0, 0, 1, 0, 0, 0], n, seed, 0.7), 0.03) for seed in range(20)])
        for n in (24, 96)
    )
    assert few > 0.5
    assert many > 2 * few


def by_length(tokens):
    return 0.1 * len(tokens)


def by_a_word(tokens):
    return 2.0 * np.sum(tokens == 7)


@pytest.mark.parametrize("liked", [by_length, by_a_word])
@pytest.mark.parametrize("sign", [1, -1])
def test_ratings_by_form_are_found_where_the_scores_show_nothing(liked, sign):
    found, blind = [], []
    for seed in range(20):
        ratings, scores, tokens, metric = answers_with([0, 0, 0, 0, 0, 0], 48, seed, 0.0)
        ratings = ratings + sign * np.array([liked(ids) for ids in tokens])
        found.append(dependence(ratings, scores, tokens, metric, 0.03))
        blind.append(dependence(ratings, scores, [ALIKE] * 48, metric, 0.03))
    assert np.median(found) > 3
    assert abs(np.median(blind)) < 0.5


def counted_one_by_one(answers):
    """The logarithms of how often each common token occurs, and the length, one token and one answer at a time."""
    held = Counter(token for ids in answers for token in set(ids.tolist()))
    n = len(answers)
    telling = [token for token, of in held.most_common() if 0.08 * n <= of <= 0.92 * n][:_COMMON]
    rows = [[*(np.sum(ids == token) for token in telling), len(ids)] for ids in answers]
    found = np.log1p(np.array(rows, dtype=np.float64))
    found -= found.mean(axis=0)
    return found / np.maximum(found.std(axis=0), 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 80), st.integers(1, 300), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_tokens_are_counted_as_one_by_one(n, vocabulary, longest, seed):
    """To the last bit: ties decide which tokens count, and the order of columns how sums round."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, n)
    answers = [rng.integers(0, vocabulary, length).astype(np.int32) for length in lengths]
    np.testing.assert_array_equal(_counts(answers), counted_one_by_one(answers))


def test_a_quiet_direction_counts_as_much_as_a_loud_one():
    """Which is what the metric is for: plainly measured, the loud direction's noise would drown it."""
    plain = Spectrum(np.eye(6, dtype=np.float32), np.ones(6, dtype=np.float32), 0.0)
    natural, unscaled = [], []
    for seed in range(20):
        ratings, scores, tokens, metric = answers_with([0, 0, 0, 0, 0, 1], 64, seed, 0.7)
        natural.append(dependence(ratings, scores, tokens, metric, 0.03))
        unscaled.append(dependence(ratings, scores, tokens, plain, 0.03))
    assert np.median(natural) > 1.5 * np.median(unscaled)


def test_nothing_is_claimed_of_few_or_equal_ratings():
    ratings, scores, tokens, metric = answers_with([1, 0, 0, 0, 0, 0], 7, 0, 5.0)
    assert dependence(ratings, scores, tokens, metric, 0.03) == 0.0
    _, scores, tokens, metric = answers_with([1, 0, 0, 0, 0, 0], 32, 0, 5.0)
    assert dependence([0.5] * 32, scores, tokens, metric, 0.03) == 0.0


def test_trust_rises_with_evidence_alone():
    assert Evidence().trust(0.25) == 0.25
    assert Evidence(-3.0, 10).trust(0.25) == 0.25
    shares = [Evidence(z, 1).trust(0.25) for z in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert shares == sorted(shares)
    assert Evidence(3.0, 1).trust(0.0) == pytest.approx(0.5)
    assert shares[-1] > 0.9


def test_corrections_are_trusted_as_they_stand():
    corrected = Evidence().counting(correction=True)
    assert corrected.trust(0.25) == 1.0
    assert corrected.counting(correction=False).trust(0.25) == pytest.approx(0.625)
    assert Evidence().counting(correction=False).trust(0.25) == 0.25


def test_kept_beside_the_moments():
    evidence = Evidence(1.5, 3, 1)
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


async def drift_of(seed, least_trust):
    """KL to the base model of what is served after 64 ratings that have nothing to do with the answers."""
    world, rng = World(ToyHost(seed)), np.random.default_rng(seed)
    settings = LearningSettings(replay_every=16, replay_steps=30, replay_tokens=200, least_trust=least_trust)
    async with learner_of(world, settings, rates=Rates(quality_threshold=0.0)) as learner:
        asked = [world.ask(prompt=(i % 12, i % 12 + 1))[0] for i in range(64)]
        for request_id in asked:
            await learner.learn(world.judge(request_id, float(rng.random())), wait=True)
        await learner.settle()
        served = world.host.adapters["toy/default/*"][1]
        captures = list(world.host.captures.values())
        return (await world.host.evaluate(captures, served)).mean_kl_to_base


async def test_meaningless_ratings_move_less_where_trust_must_be_earned():
    free = [await drift_of(seed, 1.0) for seed in range(5)]
    earned = [await drift_of(seed, 0.25) for seed in range(5)]
    assert np.median(earned) < 0.35 * np.median(free)


async def test_meaningful_ratings_earn_it():
    gains = [await gain_from(seed, permuted=False, least_trust=0.25) for seed in (1, 7, 9)]
    assert np.mean(gains) > 0.1
