"""Versions that are served are watched: sequential tests, going back, canaries, constrained requests."""

import dataclasses
import math

import numpy as np
import pytest
from toy import MemoryStore, Rates, ToyHost, World

from sona_stream.config.settings import CanarySettings, LearningSettings, ValiditySettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.known import packed, unpacked
from sona_stream.engine.learner.reading import Window
from sona_stream.engine.learner.sequential import CELLS, Stream, below, below_value, not_below
from sona_stream.engine.learner.validity import Validity
from sona_stream.engine.learner.watch import Watch
from sona_stream.engine.learner.watches import in_share
from sona_stream.events import AdapterRef, Principal, Request, RouteDecision, Score, Trajectory

KEY = "toy/default/*"


def stream(values):
    one = Stream()
    for value in values:
        one.push(float(value))
    return one


# ---- the sequential test


def test_evidence_is_the_wealth_of_fair_bets():
    """Against its definition: the mean over bets of the product of 1 + c (x/m - 1)."""
    values, bets = [0.2, 0.9, 0.5, 1.0, 0.0], [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 0.95]
    one = stream(values)
    for cell in (1, 10, 20, 39):
        m = cell / CELLS
        up = np.mean([np.prod([1 + c * (x / m - 1) for x in values]) for c in bets])
        down = np.mean([np.prod([1 + c * ((1 - x) / (1 - m) - 1) for x in values]) for c in bets])
        assert one.above()[cell] == pytest.approx(math.log(up))
        assert one.below()[cell] == pytest.approx(math.log(down))
    assert (np.diff(one.above()) <= 1e-12).all()
    assert (np.diff(one.below()) >= -1e-12).all()


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
def test_the_least_over_all_means_is_never_above_a_finer_one(margin):
    rng = np.random.default_rng(1)
    one, other = stream(rng.random(30) * 0.5), stream(0.4 + rng.random(30) * 0.6)
    finest = below(one, other, margin)
    shift = math.ceil(margin * CELLS - 1e-9)
    at_points = min(other.above()[j] + (one.below()[j - shift] if j >= shift else 0.0) for j in range(CELLS + 1))
    assert finest <= at_points + 1e-9
    assert not_below(stream([]), other, margin) <= 0.0 or margin > 0


def ever(test, needed, one, other, values):
    """After how many values of `one` the evidence is there; None: never."""
    for count, value in enumerate(values, start=1):
        one.push(float(value))
        if test(one, other) >= needed:
            return count
    return None


def test_false_alarms_are_as_rare_as_promised_however_often_one_looks():
    """200 runs of 150 looks at alpha 0.2, the same coin on both sides: at most 0.2 and three standard errors."""
    rng, alpha, runs = np.random.default_rng(0), 0.2, 200
    alarms = 0
    for _ in range(runs):
        p = rng.choice([0.1, 0.5, 0.9])
        other = stream(rng.random(60) < p)
        found = ever(lambda a, b: below(a, b, 0.0), -math.log(alpha), Stream(), other, rng.random(150) < p)
        alarms += found is not None
    assert alarms / runs <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


@pytest.mark.parametrize(("before", "after", "most"), [(0.8, 0.1, 40), (0.7, 0.35, 150)])
def test_a_fall_is_found(before, after, most):
    rng = np.random.default_rng(2)
    needed, other = math.log(1 / 0.005), stream(np.clip(rng.normal(before, 0.2, 128), 0, 1))
    values = np.clip(rng.normal(after, 0.2, 400), 0, 1)
    found = ever(lambda a, b: below(a, b, 0.05), needed, Stream(), other, values)
    assert found is not None
    assert found <= most
    fine = ever(lambda a, b: not_below(a, b, 0.2), needed, Stream(), other, np.full(400, before))
    assert fine is not None, "and what is no worse is accepted"
    assert below_value(stream([0.0] * 20), 0.4) > needed


# ---- a watch


def answer(tokens, *, score=0.8, version=1, request_id="r", **more):
    adapter = AdapterRef(key=KEY, version=version) if version else None
    return Trajectory(
        request_id=request_id, tenant="default", key_id="k", model="toy", adapter=adapter,
        route=RouteDecision(model="toy", reason=""), token_ids=tuple(int(t) for t in tokens),
        score=Score(value=score), **more,
    )  # fmt: skip


def text(rng, n=40):
    return rng.integers(0, 500, n)


def watched(version, count, rng, tokens=text, watch=None, **more):
    watch = watch or Watch(CanarySettings())
    for _ in range(count):
        watch.answered(version, answer(tokens(rng), version=version, **more))
    return watch


def test_distinctness_is_that_of_the_last_answers_together():
    window = Window()
    assert window.take([(1, 2), (2, 3), (1, 2)]) == pytest.approx(2 / 3)
    assert window.take([(1, 2), (5, 6)]) == 0.5
    for i in range(8):
        window.take([(10 + i, 0)])
    assert window.take([(1, 2), (2, 3)]) == 1.0, "forgotten after eight answers"


def test_equal_versions_are_left_alone_and_accepted_after_probation():
    rng = np.random.default_rng(0)
    watch = watched(0, 30, rng)
    assert not watch.accepted
    watched(1, 128, rng, watch=watch)
    assert watch.finding() is None
    assert watch.accepted
    watch.advance(1)
    assert (watch.reference, watch.answers, watch.accepted) == (1, 0, False)


@pytest.mark.parametrize(
    ("tokens", "gate"),
    [
        (lambda rng: [7, 8] * 20, "degenerate_answers"),  # the same two words
        (lambda rng: [7] * 40, "degenerate_answers"),
        (lambda rng: np.arange(40), "degenerate_answers"),  # one answer to every question
        (lambda rng: [1], "length_fell"),
    ],
)
def test_degenerate_answers_are_found_against_the_base_models(tokens, gate):
    rng = np.random.default_rng(0)
    watch = watched(0, 32, rng)
    count = 0
    while watch.finding() is None:
        watched(3, 1, rng, tokens, watch)
        count += 1
        assert count < 80
    assert watch.finding().gate == gate


def test_loops_are_found_without_any_answer_of_the_base_model():
    rng = np.random.default_rng(0)
    watch = watched(1, 40, rng, lambda rng: [7] * 40)
    assert watch.finding().gate == "degenerate_answers"
    assert watched(1, 40, rng).finding() is None


def test_ratings_decide_over_scores_but_not_over_loops():
    rng = np.random.default_rng(0)
    watch = watched(0, 60, rng, score=0.9)
    watched(1, 60, rng, watch=watch, score=0.2)
    assert watch.finding().gate == "score_fell"
    for _ in range(20):
        watch.rated(1, 0.9)
    assert watch.finding() is None
    while watch.finding() is None:
        watched(1, 1, rng, lambda rng: [7] * 40, watch)
        assert watch.answers < 60 + 48, "the good answers before them do not hide them"
    assert watch.finding().gate == "degenerate_answers"


def test_falling_ratings_are_found_after_acceptance_too():
    rng = np.random.default_rng(0)
    watch = watched(0, 20, rng)
    for _ in range(200):
        watch.rated(0, float(rng.random() < 0.8))
    watched(1, 130, rng, watch=watch)
    assert watch.accepted
    for _ in range(200):
        watch.rated(1, float(rng.random() < 0.3))
    assert watch.finding().gate == "rating_fell"
    assert "version 0" in watch.finding().reason


def test_a_watch_survives_a_restart():
    rng = np.random.default_rng(0)
    watch = watched(2, 20, rng, watch=watched(0, 20, rng))
    watch.rated(2, 0.4)
    watch.taught("f1")
    again = Watch.from_arrays(unpacked(packed(watch.to_arrays())), CanarySettings())
    assert again.view() == watch.view()
    assert again.lessons == ["f1"]
    with pytest.raises(ValueError):
        Watch.from_arrays(Validity(ValiditySettings()).to_arrays(), CanarySettings())


# ---- acting on it


def learner_of(world, settings=None, mode="feedback"):
    settings = settings or LearningSettings(replay_every=10_000)
    return Learner({"toy": world.host}, world.store, Rates(), settings, mode)


def request(id="r", user=None, **more):
    return Request(
        id=id, endpoint="chat.completions", model="toy", body=b"{}", route=RouteDecision(model="toy", reason=""),
        principal=Principal(user=user), **more,
    )  # fmt: skip


async def teach(world, learner, quality):
    ref = learner.resolve(request())
    request_id, _ = world.ask(adapter=ref)
    return await learner.learn(world.judge(request_id, quality), wait=True)


async def until(condition):
    import asyncio

    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.01)


def counted(learner, name):
    return learner.stats()["counters"].get(name, 0)


def answers(learner, version, count, tokens=text, seed=0, **more):
    rng = np.random.default_rng(seed)
    for i in range(count):
        learner.observe(answer(tokens(rng), version=version, request_id=f"a{version}-{i}", **more))


async def test_loops_take_the_version_and_its_lessons_back():
    world = World()
    async with learner_of(world) as learner:
        answers(learner, 0, 32)
        for i in range(3):
            await teach(world, learner, float(i % 2))
        assert learner.resolve(request()).version == 3
        answers(learner, 3, 30, lambda rng: [7] * 40)
        await until(lambda: learner.resolve(request()) is None)
        await until(lambda: counted(learner, "rolled_back") == 1)
        assert KEY not in world.host.adapters
        gates = learner.stats()["gates"][KEY]
        assert gates["degenerate_answers"] == 1
        assert "back to version 0" in gates["last"]
        assert {view["status"] for view in await learner.adapters()} == {"rolled_back"}
        await learner.tick()
        await learner.settle()
        assert learner.resolve(request()) is None, "its lessons do not bring it back"
        outcome = await teach(world, learner, 1.0)
        assert str(outcome.adapter) == f"{KEY}@4", "learning goes on"


async def test_going_back_reaches_the_last_accepted_version_although_many_came_since():
    world = World()
    settings = LearningSettings(replay_every=10_000, keep_versions=2, canary=CanarySettings(probation=16))
    async with learner_of(world, settings) as learner:
        await teach(world, learner, 1.0)
        answers(learner, 1, 20)
        trusted = world.host.adapters[KEY][1]
        for i in range(5):
            await teach(world, learner, float(i % 2))
        assert learner.stats()["watched"][KEY]["reference"] == 1
        answers(learner, 6, 14, lambda rng: [7] * 40)
        await until(lambda: counted(learner, "rolled_back") == 1)
        assert learner.resolve(request()).version == 1
        assert np.array_equal(world.host.adapters[KEY][1].micro.lora_B, trusted.micro.lora_B)


async def test_what_was_watched_is_known_after_a_restart():
    world = World()
    async with learner_of(world) as learner:
        answers(learner, 0, 32)
        await teach(world, learner, 1.0)
        answers(learner, 1, 5)
        before = learner.stats()["watched"][KEY]
    world.host.adapters.clear()
    async with learner_of(world) as learner:
        assert learner.stats()["watched"][KEY] == before
        answers(learner, 1, 30, lambda rng: [7] * 40)
        await until(lambda: learner.resolve(request()) is None)


async def test_a_finer_levels_answers_say_nothing_of_the_coarser_and_its_own_of_before_are_its_reference():
    world = World()
    settings = LearningSettings(replay_every=10_000, min_feedback=2)
    finer = "toy/default/General"
    async with learner_of(world, settings) as learner:
        answers(learner, 0, 10)
        await teach(world, learner, 1.0)
        answers(learner, 1, 5)
        await teach(world, learner, 0.0)
        assert learner.resolve(request()).key == finer
        rng = np.random.default_rng(1)
        for _ in range(7):
            one = answer(text(rng), version=1)
            learner.observe(dataclasses.replace(one, adapter=AdapterRef(key=finer, version=1)))
        watched = learner.stats()["watched"]
        assert (watched[KEY]["answers"], watched[KEY]["means"]["reference"]["score"][1]) == (5, 10)
        assert (watched[finer]["answers"], watched[finer]["means"]["reference"]["score"][1]) == (7, 15)


async def test_a_canary_answers_its_share_until_it_is_accepted():
    world = World()
    canary = CanarySettings(share=0.25, probation=20, least_answers=0)
    settings = LearningSettings(replay_every=10_000, canary=canary)
    async with learner_of(world, settings) as learner:
        outcome = await teach(world, learner, 1.0)
        assert str(outcome.adapter) == f"{KEY}@1"
        refs = [learner.resolve(request(id=f"q{i}")) for i in range(400)]
        assert {ref.version for ref in refs if ref} == {1}
        assert 60 <= sum(ref is not None for ref in refs) <= 140
        assert all(ref.pinned for ref in refs if ref)
        whose = [learner.resolve(request(id=f"q{i}", user=f"u{i % 7}")) is None for i in range(70)]
        assert whose == whose[:7] * 10, "an end user stays on one side"
        assert learner.stats()["canaries"] == {KEY: 1}
        assert KEY not in world.host.adapters
        await teach(world, learner, 0.0)
        assert learner.stats()["canaries"] == {KEY: 2}, "the newest takes the place of the pending one"
        answers(learner, 0, 20)
        answers(learner, 2, 20)
        await until(lambda: not learner.stats()["canaries"])
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=2)
        assert world.store.records[KEY, 2].status == "published"
        assert world.store.current == {KEY: 2}


async def test_a_canary_that_harms_is_dropped_and_survives_no_restart():
    world = World()
    canary = CanarySettings(share=0.5, probation=200, least_answers=0)
    settings = LearningSettings(replay_every=10_000, canary=canary)
    async with learner_of(world, settings) as learner:
        answers(learner, 0, 32)
        await teach(world, learner, 1.0)
    async with learner_of(world, settings) as learner:
        assert learner.stats()["canaries"] == {KEY: 1}, "what was on trial still is"
        answers(learner, 1, 30, lambda rng: [7] * 40)
        await until(lambda: not learner.stats()["canaries"])
        assert {learner.resolve(request(id=f"q{i}")) for i in range(20)} == {None}
    async with learner_of(world, settings) as learner:
        assert learner.stats()["canaries"] == {}


async def test_few_answers_mean_everybody_at_once():
    world = World()
    settings = LearningSettings(replay_every=10_000, canary=CanarySettings(share=0.1, least_answers=50))
    async with learner_of(world, settings) as learner:
        await teach(world, learner, 1.0)
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        answers(learner, 1, 60)
        await teach(world, learner, 0.0)
        assert learner.stats()["canaries"] == {KEY: 2}
        assert world.host.adapters[KEY][0] == 1


@pytest.mark.parametrize("crash", ["put_adapter", "set_current", "put_blob"])
async def test_a_failure_while_going_back_leaves_the_learner_at_work(crash, caplog):
    world = World()
    async with learner_of(world) as learner:
        answers(learner, 0, 32)
        await teach(world, learner, 1.0)
        world.store.crash_before = crash
        answers(learner, 1, 30, lambda rng: [7] * 40)
        await until(lambda: counted(learner, "failures"))
        world.store.crash_before = None
        answers(learner, 1, 1, lambda rng: [7] * 40)
        await until(lambda: learner.resolve(request()) is None)
        assert (await teach(world, learner, 1.0)).status == "published"


def test_shares_are_drawn_by_the_salt():
    ids = [request(id=f"q{i}") for i in range(1000)]
    drawn = [[in_share(one, salt, 0.3) for one in ids] for salt in ("a", "b")]
    assert [250 < sum(one) < 350 for one in drawn] == [True, True]
    assert drawn[0] != drawn[1]
    assert all(in_share(one, "a", 1.0) for one in ids)


# ---- constrained requests


def formed(valid, version, **more):
    one = answer([1, 2, 3], version=version, **more)
    return dataclasses.replace(one, score=Score(value=0.9, parts={"form": valid}))


async def test_constrained_requests_are_adapted_once_their_form_was_shown_to_last():
    world = World()
    validity = ValiditySettings(answers=10, share=0.2, margin=0.1)
    async with learner_of(world, LearningSettings(replay_every=10_000, validity=validity)) as learner:
        await teach(world, learner, 1.0)
        asked = [request(id=f"q{i}", constrained=True) for i in range(300)]
        assert {learner.resolve(one) for one in asked} == {None}
        assert learner.bare_reason(asked[0]) == "constrained: 0 of 10 unadapted answers measured"
        for _ in range(10):
            learner.observe(formed(1.0, 0))
        assert learner.stats()["watched"][KEY]["constrained"]["state"] == "trial"
        adapted = sum(learner.resolve(one) is not None for one in asked)
        assert 30 <= adapted <= 90
        assert "on trial for 20%" in learner.bare_reason(asked[0])
        for _ in range(100):
            learner.observe(formed(1.0, 1))
        assert learner.stats()["watched"][KEY]["constrained"]["state"] == "passed"
        assert all(learner.resolve(one) is not None for one in asked)
    async with learner_of(world, LearningSettings(replay_every=10_000, validity=validity)) as learner:
        assert learner.resolve(asked[0]) is not None, "known after a restart"
        for _ in range(200):
            learner.observe(formed(0.0, 1))
        assert {learner.resolve(one) for one in asked} == {None}
        assert "valid in" in learner.bare_reason(asked[0])
        assert learner.stats()["watched"][KEY]["constrained"]["state"] == "failed"
        await learner.rollback(KEY, 0)
        assert "0 of 10" in learner.bare_reason(asked[0])


async def test_a_share_of_nothing_never_adapts():
    world = World()
    validity = ValiditySettings(answers=1, share=0.0)
    async with learner_of(world, LearningSettings(replay_every=10_000, validity=validity)) as learner:
        await teach(world, learner, 1.0)
        learner.observe(formed(1.0, 0))
        assert {learner.resolve(request(id=f"q{i}", constrained=True)) for i in range(50)} == {None}
        assert "share is 0" in learner.bare_reason(request(constrained=True))


# ---- looking


async def test_versions_are_shown_and_compared():
    world = World(ToyHost(2), MemoryStore())
    async with learner_of(world) as learner:
        for i in range(3):
            await teach(world, learner, float(i % 2))
        shown = await learner.adapter(KEY, 2)
        weights = world.store.records[KEY, 2].weights.micro
        whole = weights.lora_B.astype(np.float64) @ weights.lora_A.astype(np.float64)
        assert shown["norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        assert (shown["version"], shown["parent"], shown["rank"], shown["served"]) == (2, 1, 2, False)
        told = await learner.difference(KEY, 1, 3)
        one, other = (world.store.records[KEY, v].weights for v in (1, 3))
        a, b = (w.micro.lora_B.astype(np.float64) @ w.micro.lora_A.astype(np.float64) for w in (one, other))
        assert told["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)
        assert told["norm_of_difference"] == pytest.approx(np.linalg.norm(a - b), rel=1e-3)
        captures = [world.host.captures[f"default-{i}"] for i in (3, 2, 1)]
        assert told["kl"] == pytest.approx(await world.host.predicted_kl(captures, one, other))
        assert told["answers"] == 3
        assert told["hidden_state_difference"] > 0
        base = await learner.difference(KEY, 0, 3)
        assert base["norms"][0] == 0.0
        assert base["cosine"] is None
        assert base["kl"] > 0
