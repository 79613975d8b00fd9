"""Gates before a version is served: each holds back what it is for, with its reason counted and shown."""

import itertools

import numpy as np
import pytest
from toy import D, Rates, T, ToyHost, V, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.gates import GATES, Limits, judge, sample
from sona_stream.engine.learner.lessons import Lesson
from sona_stream.events import AdapterRef, RouteDecision
from sona_stream.lora import Evaluation, LoraWeights, LowRank

KEY = "toy/default/*"
WEIGHTS = LoraWeights(LowRank(np.ones((1, D), dtype=np.float32), np.zeros((D, 1), dtype=np.float32)))


def evaluation(drops=(0.0,), *, kl=0.1, token_kl=0.1, ratio=0.1, collisions=(None, None), masses=(None, None)):
    base = np.full(4, -1.0, dtype=np.float32)
    rows = [base - np.float32(drop) for drop in drops]
    return Evaluation(kl, token_kl, rows, [base for _ in drops], ratio, ratio, True, *collisions, *masses)


def verdict(seen, patterns=None, **limits):
    bounds = Limits(**{"max_kl_to_base": 0.5, "max_delta_ratio": 0.4, "max_logprob_drop": 0.3, **limits})
    return judge(WEIGHTS, seen, [True] * len(seen.logprobs), bounds, patterns)


def test_one_token_may_not_move_further_than_its_own_bound():
    assert verdict(evaluation(token_kl=9.0)).ok
    refused = verdict(evaluation(token_kl=9.0), max_token_kl=8.0)
    assert (refused.gate, refused.reason) == ("token_kl", "max_kl_to_base 9 is above 8")


def test_a_pattern_that_falls_is_not_hidden_by_the_others():
    drops, patterns = [-0.2] * 20 + [0.5, 0.6, 0.55], ["a"] * 20 + ["b"] * 3
    assert verdict(evaluation(drops)).ok, "all together they rose"
    refused = verdict(evaluation(drops), patterns)
    assert refused.gate == "pattern_drop"
    assert refused.metrics["accepted_logprob_drop"] < 0 < refused.metrics["pattern_logprob_drop"]
    assert verdict(evaluation([*drops[:20], 0.5]), [*patterns[:20], "b"]).ok, "one answer says nothing of a pattern"
    noisy = verdict(evaluation([-0.2] * 20 + [2.0, -1.0, 0.6]), patterns)
    assert noisy.ok, "a mean fall of .53, but from answers that do not agree"


@pytest.mark.parametrize(
    ("seen", "gate"),
    [
        (evaluation(), ""),
        (evaluation(collisions=(0.05, 0.02)), ""),
        (evaluation(collisions=(0.09, 0.02)), "degenerate"),
        (evaluation(collisions=(0.2, 0.3)), ""),
        (evaluation(masses=(0.25, 0.1)), "degenerate"),
        (evaluation(collisions=(0.05, 0.02), masses=(0.12, 0.1)), ""),
        (evaluation(collisions=(float("nan"), 0.02)), "finite"),
    ],
)
def test_what_would_repeat_itself_is_degenerate(seen, gate):
    assert verdict(seen, max_repetition=0.05).gate == gate


def lessons(n, group, quality=1.0, first=0):
    world = World(ToyHost())
    for _ in range(n):
        world.ask()
    captures = list(world.host.captures.values())
    return [Lesson(c, quality, ("*", group), f"{group}{first + i}") for i, c in enumerate(captures)]


def test_the_sample_takes_patterns_in_turn_and_some_answers_of_others():
    own = lessons(30, "often") + lessons(3, "seldom") + lessons(12, "often", quality=0.0, first=30)
    others = lessons(9, "elsewhere") + lessons(9, "bad", quality=0.0)
    chosen = sample(own, others, lambda one: one.quality == 1.0, tokens=16 * T)
    assert len(chosen) == 16
    groups = [one.groups[-1] for one in chosen]
    assert groups.count("elsewhere") == 4
    assert "bad" not in groups
    assert groups.count("seldom") == 3, "all of the few"
    assert sum(one.quality == 0.0 for one in chosen) in (5, 6)
    again = sample(own, others, lambda one: one.quality == 1.0, tokens=16 * T)
    assert [one.feedback_id for one in again] == [one.feedback_id for one in chosen]
    assert sample([], others, lambda one: True, tokens=100) == []


async def taught_to_repeat(settings, n=64):
    """Rewards one token wherever it comes."""
    world, statuses = World(ToyHost(3)), []
    async with Learner({"toy": world.host}, world.store, Rates(micro_lora_lr=1e-2), settings) as learner:
        for i in range(n):
            ref = AdapterRef(key=KEY, version=1) if KEY in world.host.adapters else None
            request_id, tokens = world.ask(prompt=(i % V, (3 * i) % V), adapter=ref)
            quality = float(np.mean(np.asarray(tokens) == 5))
            outcome = await learner.learn(world.judge(request_id, quality), wait=True)
            statuses.append(outcome)
            await learner.settle()
        answers = [world.ask(prompt=(i % V, i % 7), adapter=ref)[1] for i in range(40)]
        pairs = [pair for tokens in answers for pair in itertools.pairwise(tokens)]
        return len(set(pairs)) / len(pairs), statuses, learner.stats()


OPEN = {"max_kl_to_base": 50.0, "max_delta_ratio": 50.0, "max_logprob_drop": 50.0, "max_token_kl": 500.0}
FAST = {"replay_every": 8, "replay_steps": 8, "least_trust": 1.0, "anchor": 0.0, "step_kl": 0.05}


async def test_a_reward_for_one_token_ends_in_nothing_else_unless_the_gate_stops_it():
    settings = LearningSettings(**OPEN, **FAST, max_repetition=50.0)
    collapsed, _, _ = await taught_to_repeat(settings)
    kept, statuses, stats = await taught_to_repeat(LearningSettings(**OPEN, **FAST, max_repetition=0.05))
    assert collapsed < 0.5 * kept
    gated = [one for one in statuses if one.status == "gated"]
    assert gated
    assert "repetition_rise" in gated[0].reason
    assert stats["counters"]["gated_degenerate"] == stats["gates"][KEY]["degenerate"] > 0
    assert "repetition_rise" in stats["gates"][KEY]["last"]


async def test_each_tenants_refusals_are_its_own():
    world = World()
    settings = LearningSettings(max_kl_to_base=1e-9, least_trust=1.0, replay_every=10_000)
    async with Learner({"toy": world.host}, world.store, Rates(), settings) as learner:
        for tenant, count in (("a", 2), ("b", 1)):
            for _ in range(count):
                request_id, _ = world.ask(tenant, route=RouteDecision(model="toy", reason=""))
                await learner.learn(world.judge(request_id, 1.0, tenant=tenant), wait=True)
        gates = learner.stats()["gates"]
        assert {root: one["kl_to_base"] for root, one in gates.items()} == {"toy/a/*": 2, "toy/b/*": 1}
        assert set(learner.stats()["counters"]) & {f"gated_{gate}" for gate in GATES} == {"gated_kl_to_base"}
