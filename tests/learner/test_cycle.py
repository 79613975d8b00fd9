"""The slow half of learning on the toy model: consolidation, slow steps, domains and what holds them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy import D, MemoryStore, Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.consolidation import empty_base
from sona_stream.engine.learner.domains import MOST, Domain, Domains, domain_of, reservoir
from sona_stream.engine.learner.ewc import Elastic, factored_penalty, with_penalty
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.engine.learner.keys import AdapterKey
from sona_stream.engine.learner.lessons import Lesson
from sona_stream.engine.learner.optimiser import Pace
from sona_stream.engine.learner.replay import Plan, Weighed, fit
from sona_stream.engine.learner.turns import TakingTurns
from sona_stream.events import RouteDecision
from sona_stream.lora import LoraGradient, LoraWeights, LowRank, Spectrum

KEY = "toy/default/*"
SETTINGS = LearningSettings(replay_every=8, base_steps=4, min_feedback=10_000, least_trust=1.0)


def learner_of(world, rates=None, settings=SETTINGS):
    return Learner({"toy": world.host}, world.store, rates or Rates(), settings, "feedback")


def changed(**changes):
    values = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__}
    return LearningSettings(**{**values, **changes})


async def correct(world, learner, text, pattern_type="General"):
    route = RouteDecision(model="toy", reason="test", pattern_type=pattern_type)
    request_id, _ = world.ask(route=route)
    await learner.learn(world.judge(request_id, None, kind="correction", correction=text), wait=True)


async def taught(world, learner, count=8, text="bbbbbb", **more):
    for _ in range(count):
        await correct(world, learner, text, **more)
        await learner.settle()  # replays at the same lessons, however busy the machine is


async def test_force_learn_folds_micro_into_base_and_the_policy_hardly_moves():
    world = World()
    async with learner_of(world, settings=changed(base_steps=0)) as learner:
        await taught(world, learner)
        before = world.host.adapters[KEY][1]
        sentence = await learner.force_learn()
        folded = world.host.adapters[KEY][1]
    assert "1 consolidations, status: completed" in sentence
    assert before.base is None
    assert folded.base.lora_A.shape == (Rates.base_lora_rank, D)
    assert not folded.micro.lora_B.any()
    records = [record for record in world.store.records.values() if record.reason == "consolidate"]
    assert len(records) == 1
    assert {"fold_error", "fold_kl", "fold_rank"} <= set(records[0].metrics)
    assert records[0].metrics["fold_error"] == pytest.approx(0.0, abs=1e-9)  # rank 2 into rank 4
    assert records[0].metrics["fold_kl"] < 1e-6
    assert not {"m_A", "v_A", "count"} & set(records[0].moments)
    captures = list(world.host.captures.values())
    assert await world.host.predicted_kl(captures, before, folded) < 1e-3


async def test_slow_steps_move_the_base_pair_towards_what_was_accepted():
    world = World()
    async with learner_of(world, Rates(base_lora_lr=1e-3)) as learner:
        await taught(world, learner)
        await learner.force_learn()
        fold, slow = (
            next(r for r in world.store.records.values() if r.reason == reason)
            for reason in ("consolidate", "background")
        )
        lessons = [capture for capture, _, _ in await world.store.captures("toy/default/General", limit=99)]
        one, other = [await world.host.evaluate(lessons, r.weights) for r in (fold, slow)]
    assert np.array_equal(fold.weights.micro.lora_B, slow.weights.micro.lora_B)
    assert np.mean(np.concatenate(other.logprobs)) > np.mean(np.concatenate(one.logprobs))


async def test_base_lora_lr_zero_means_no_cycle_and_the_interval_is_kept():
    world = World()
    async with learner_of(world, Rates(base_lora_lr=0.0)) as learner:
        await taught(world, learner)
        assert "0 consolidations" in await learner.force_learn()
    async with learner_of(world) as learner:
        await learner.tick()
        await learner.settle()
        assert learner.stats()["counters"].get("consolidations", 0) == 0
    fast = Rates(background_interval_ms=1)
    async with learner_of(world, fast, changed(consolidate_every=4)) as learner:
        await learner.tick()
        await learner.settle()
        assert learner.stats()["counters"]["consolidations"] == 1
        await learner.tick()
        await learner.settle()
        assert learner.stats()["counters"]["consolidations"] == 1, "nothing new was taught"


@pytest.mark.parametrize("step", ["put_adapter", "set_current", "put_blob"])
async def test_a_crash_in_a_cycle_leaves_what_was_served_and_the_next_one_does_it(step):
    world = World()
    async with learner_of(world) as learner:
        await taught(world, learner)
        world.store.crash_before = step
        try:
            await learner.force_learn()
        except ConnectionAbortedError:
            assert step == "put_blob"
        world.store.crash_before = None
    current = world.store.current[KEY]
    host = ToyHost()
    again = World(host, world.store)
    async with learner_of(again) as learner:
        assert host.adapters[KEY][0] == current
        await learner.force_learn()
        assert world.store.current[KEY] > current or step == "put_blob"
        assert host.adapters[KEY][1].base is not None


async def test_feedback_after_a_fold_goes_on_learning_on_top_of_it():
    world = World()
    async with learner_of(world) as learner:
        await taught(world, learner)
        await learner.force_learn()
        base = world.host.adapters[KEY][1].base
        await taught(world, learner, 8)
        now = world.host.adapters[KEY][1]
    assert now.micro.lora_B.any()
    assert np.array_equal(now.base.lora_A, base.lora_A)
    share = now.base.lora_B / base.lora_B  # the bound on KL may contract the whole adapter
    assert share.min() > 0.5
    assert np.allclose(share, share[0, 0], rtol=1e-3)


async def test_an_unsupported_fit_is_not_consolidated_unasked():
    world = World()
    fast = Rates(background_interval_ms=1)
    async with learner_of(world, fast, changed(consolidate_every=4)) as learner:
        rng = np.random.default_rng(0)
        for _ in range(8):
            request_id, _ = world.ask()
            await learner.learn(world.judge(request_id, float(rng.random())), wait=True)
        await learner.settle()
        await learner.tick()
        await learner.settle()
        counters = learner.stats()["counters"]
    assert counters.get("consolidations", 0) == 0
    assert counters["consolidations_unsupported"] >= 1


async def drift(strength, seed):
    """How far (nats per token) the first domain's policy went from where its consolidation left it."""
    world = World(ToyHost(seed))
    async with learner_of(world, Rates(ewc_lambda=strength)) as learner:
        await taught(world, learner, 8, "bbbbbb", pattern_type="CodeGen")
        await learner.force_learn()
        old = world.host.adapters[KEY][1]
        kept = [c for c, _, _ in await world.store.captures("toy/default/domain:*:CodeGen", limit=99)]
        assert kept
        await taught(world, learner, 16, "ffffff", pattern_type="Factual")
        return await world.host.predicted_kl(kept, old, world.host.adapters[KEY][1])


async def test_another_domain_is_not_forgotten():
    free, held = [np.median([await drift(strength, seed) for seed in range(3)]) for strength in (0.0, 16_000.0)]
    assert held < 0.5 * free


@pytest.mark.parametrize("slow", [False, True], ids=["micro", "base"])
@pytest.mark.parametrize("factored", [False, True], ids=["function", "factored"])
async def test_forgetting_falls_as_ewc_lambda_rises(factored, slow):
    """Steps for one kind of answer, held on another: further with each strength, for either pair and form."""
    host = TakingTurns(ToyHost())
    old, new = [
        [await host.encode((1, 2, n % 5), text * 6, request_id=text + str(n)) for n in range(6)] for text in "bf"
    ]
    curvature = await host.curvature(old)
    inputs = curvature.inputs
    start = LoraWeights(initial_weights(curvature, 2, "k").micro, empty_base(inputs, 4))
    moments = {"rms": np.asarray([curvature.rms], np.float32)}
    plan = Plan(40, 64, None, 0.01, (0.5, 2.0), 8.0, 0.5, 5.0)
    held = Domain("b", 1, start, tuple((c, c.request_id) for c in old), curvature.outputs, inputs)
    lessons = [Weighed(Lesson(c, None, ("*",), c.request_id), 1.0) for c in new]
    moved = []
    for strength in (0.0, 500.0, 2000.0, 8000.0):
        elastic = Elastic(strength, [held], 64, None, factored)
        pace = Pace(curvature, 0.1, 0.004, 1.0)
        result = await fit(host, lessons, start, moments, plan, pace, seed=0, slow=slow, elastic=elastic)
        moved.append(await host.predicted_kl(old, start, result.weights))
    assert moved == sorted(moved, reverse=True), moved
    assert moved[-1] < 0.5 * moved[0]


# --- domains


def lesson(number, groups=("*", "CodeGen", "pattern:1"), tokens=6, host=None):
    host = host or ToyHost()
    capture = host.make(f"r{number}", (1, 2, 3), [number % 7] * tokens, [-1.0] * tokens)
    return Lesson(capture, None, groups, f"f{number}")


def test_a_domain_is_the_next_finer_group():
    one, key = lesson(1), AdapterKey("toy", "default")
    assert domain_of(one, key) == "CodeGen"
    assert domain_of(one, key.at("CodeGen")) == "pattern:1"
    assert domain_of(one, key.at("pattern:1")) == "pattern:1"
    assert domain_of(lesson(1, ("*",)), key) == "*"


def test_a_renewed_reservoir_keeps_half_of_the_old():
    old = reservoir([lesson(n) for n in range(40)], (), 1)
    both = reservoir([lesson(n) for n in range(100, 140)], old, 2)
    ids = [feedback_id for _, feedback_id in both]
    assert len(old) == len(both) == 16
    assert sum(int(name[1:]) < 100 for name in ids) == 8
    assert len(set(ids)) == 16
    assert reservoir([lesson(1, tokens=600), lesson(2, tokens=600), lesson(3, tokens=600)], (), 1)[2:] == ()


def spectrum(seed, d=D, k=3):
    r = np.random.default_rng(seed)
    q, _ = np.linalg.qr(r.standard_normal((d, k)))
    return Spectrum(q.T.astype(np.float32), np.asarray([4.0, 2.0, 1.0], np.float32), 0.3)


def weights(seed, base=None):
    r = np.random.default_rng(seed)

    def pair(n):
        A, B = r.standard_normal((n, D)), r.standard_normal((D, n))
        return LowRank(A.astype(np.float32), B.astype(np.float32), 1.3)

    return LoraWeights(pair(2), None if base is None else pair(base))


def domain(name, version=1, seed=0):
    kept = ((lesson(seed).capture, f"f{seed}"),)
    return Domain(name, version, weights(seed, 3), kept, spectrum(seed), spectrum(seed + 1))


async def test_domains_survive_a_restart_are_bounded_and_open_again_after_a_rollback():
    store, key = MemoryStore(), AdapterKey("toy", "default")
    domains = Domains(store)
    for n in range(MOST + 2):
        await domains.close(key, "toy", domain(f"d{n}", n + 1, n))
    await domains.close(key, "toy", domain("d5", 99, 50))
    again = await Domains(store).of(key, "toy")
    assert [one.name for one in again] == ["d2", "d3", "d4", "d6", "d7", "d8", "d9", "d5"]
    assert again[-1].version == 99
    assert np.array_equal(again[0].reference.base.lora_A, domain("d2", 3, 2).reference.base.lora_A)
    assert np.array_equal(again[0].inputs.vectors, spectrum(3).vectors)
    assert [capture.request_id for capture in again[-1].captures][-1] == "r50"
    assert await Domains(store).of(key, "another model") == []
    fresh = Domains(store)
    writes = store.together()
    await fresh.reopen(key, "toy", 8, writes)
    await writes.commit()
    assert [one.name for one in await Domains(store).of(key, "toy")] == ["d2", "d3", "d4", "d6", "d7"]


def test_factored_penalty_is_its_formula_and_its_gradient():
    one, now = domain("d"), weights(7, 4)

    def dense(s):
        return s.rest * np.eye(D) + s.vectors.T.astype(float) @ np.diag(s.values - s.rest) @ s.vectors

    def value(w):
        def whole(x):
            return sum(p.scaling * p.lora_B.astype(float) @ p.lora_A.astype(float) for p in (x.micro, x.base) if p)

        M = whole(w) - whole(one.reference)
        return 0.5 * np.trace(dense(one.outputs) @ M @ dense(one.inputs) @ M.T)

    found = factored_penalty(one, now)
    assert found.loss == pytest.approx(value(now), rel=1e-5)
    for name in ("micro", "base"):
        for field, short in (("lora_A", "A"), ("lora_B", "B")):
            expected = ToyHost.slope(value, now, name, field)
            np.testing.assert_allclose(getattr(found, f"{name}_{short}"), expected, rtol=1e-3, atol=1e-2)


async def test_penalty_is_added_a_token_and_nothing_at_zero():
    gradient = LoraGradient(np.ones((2, D), np.float32), np.ones((D, 2), np.float32), None, None, 10, 1.0, 0.0, 0.0)
    pull = dataclasses.replace(gradient, tokens=5, loss=3.0)
    summed = with_penalty(gradient, pull, 0.5)
    assert np.allclose(summed.micro_A, 1.0 + 0.5 * 2)
    assert summed.loss == pytest.approx(1.0 + 0.5 * 2 * 3.0)
    nothing = Elastic(0.0, [domain("d")], 8, None)
    assert await nothing.added(ToyHost(), gradient, weights(1), np.random.default_rng(0)) is gradient
