"""The learner as the proxy sees it: feedback in, versions out, through crashes, floods and mistakes."""

import asyncio
import dataclasses

import numpy as np
import pytest
from toy import D, MemoryStore, Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner
from sona_stream.errors import CaptureGone, NotFound, NotPermitted
from sona_stream.events import AdapterRef, Principal, Request, RouteDecision

KEY = "toy/default/*"
INSTANT = LearningSettings(replay_every=10_000)


def learner_of(world, settings=INSTANT, mode="feedback", rates=None):
    return Learner({"toy": world.host}, world.store, rates or Rates(), settings, mode)


def request(tenant="default", pattern_type="General", pattern=None, **more):
    route = RouteDecision(model="toy", reason="test", pattern_type=pattern_type, pattern=pattern)
    return Request(
        id="r", endpoint="chat.completions", model="toy", body=b"{}", route=route,
        principal=Principal(tenant=tenant), **more,
    )  # fmt: skip


async def teach(world, learner, quality, tenant="default", route=None, **more):
    request_id, _ = world.ask(tenant, route=route)
    feedback = world.judge(request_id, quality, tenant=tenant, **more)
    return await learner.learn(feedback, wait=True)


def same(one, other):
    return np.array_equal(one.micro.lora_A, other.micro.lora_A) and np.array_equal(
        one.micro.lora_B, other.micro.lora_B
    )


async def test_feedback_publishes_a_version_that_the_next_request_uses():
    world = World()
    async with learner_of(world) as learner:
        assert learner.resolve(request()) is None
        outcome = await teach(world, learner, 1.0)
        assert (outcome.status, str(outcome.adapter)) == ("published", f"{KEY}@1")
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        assert learner.resolve(request(adapt=False)) is None
        assert world.host.adapters[KEY][0] == 1
        assert world.store.current == {KEY: 1}
        assert world.store.outcomes[outcome.feedback_id] == outcome
        [view] = await learner.adapters()
        assert view["served"] is True
        assert {"mean_kl_to_base", "predicted_kl"} <= set(view["metrics"])
        assert (await teach(world, learner, 0.0)).adapter == AdapterRef(key=KEY, version=2)


async def test_good_and_bad_ratings_push_opposite_ways():
    for quality, sign in ((1.0, 1), (0.0, -1)):
        world = World()
        async with learner_of(world) as learner:
            request_id, _ = world.ask()
            await learner.learn(world.judge(request_id, quality), wait=True)
            capture = world.host.captures[request_id]
            seen = await world.host.evaluate([capture], world.host.adapters[KEY][1])
            assert sign * float((seen.logprobs[0] - seen.base_logprobs[0]).sum()) > 0


@pytest.mark.parametrize(
    ("mode", "kind", "status"),
    [
        ("off", "rating", "skipped"),
        ("feedback", "score", "skipped"),
        ("auto", "score", "published"),
        ("observe", "rating", "accepted"),
        ("feedback", "metric", "published"),
    ],
)
async def test_what_is_learned_from(mode, kind, status):
    world = World()
    async with learner_of(world, mode=mode) as learner:
        outcome = await teach(world, learner, 1.0, kind=kind)
        assert outcome.status == status
        assert bool(world.host.put_log) is (status == "published")


async def test_observe_computes_gated_versions_and_serves_none():
    world = World()
    async with learner_of(world, mode="observe") as learner:
        for _ in range(3):
            outcome = await teach(world, learner, 1.0)
        assert "observed as" in outcome.reason
        assert [view["status"] for view in await learner.adapters()] == ["observed"] * 3
        assert learner.resolve(request()) is None
    assert world.store.current == {}
    async with learner_of(world, mode="observe") as learner:
        await teach(world, learner, 0.0)
        assert [view["parent"] for view in await learner.adapters()] == [None, 1, 2, 3]


async def test_correction_raises_its_own_likelihood_within_the_budget():
    world = World()
    async with learner_of(world) as learner:
        request_id, _ = world.ask()
        outcome = await learner.learn(
            world.judge(request_id, None, kind="correction", correction="abcde"), wait=True
        )
        assert outcome.status == "published"
        capture = await world.host.encode((1, 2, 3), "abcde")
        seen = await world.host.evaluate([capture], world.host.adapters[KEY][1])
        assert float((seen.logprobs[0] - seen.base_logprobs[0]).sum()) > 0.005
        [view] = await learner.adapters()
        assert view["metrics"]["predicted_kl"] <= INSTANT.step_kl


async def test_tenants_never_touch_each_other():
    world = World()
    async with learner_of(world, LearningSettings(replay_every=4, replay_steps=5)) as learner:
        await teach(world, learner, 1.0, tenant="a")
        before = world.host.adapters["toy/a/*"]
        for i in range(10):
            await teach(world, learner, float(i % 2), tenant="b")
        await learner.settle()
        assert world.host.adapters["toy/a/*"] is before
        assert learner.resolve(request("a")).key == "toy/a/*"
        assert learner.resolve(request("c")) is None
        assert {view["key"] for view in await learner.adapters(tenant="b")} == {"toy/b/*"}
        with pytest.raises(NotPermitted):
            await learner.pin(AdapterRef(key="toy/a/*", version=1), tenant="b")


async def test_poison_is_gated_and_the_served_version_stays():
    world = World()
    async with learner_of(world) as learner:
        await teach(world, learner, 1.0)
        served = world.host.adapters[KEY]
        world.host.poison = "gradient"
        outcome = await teach(world, learner, 0.0)
        assert outcome.status == "gated"
        assert world.host.adapters[KEY] is served
        world.host.poison = None
        world.host.refuse_put = True
        outcome = await teach(world, learner, 0.0)
        assert (outcome.status, outcome.reason) == ("gated", "host: refused")
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=1)
        assert world.store.current == {KEY: 1}
        world.host.refuse_put = False
        assert (await teach(world, learner, 0.0)).status == "published"
        assert sum(v for k, v in learner.stats()["counters"].items() if k.startswith(("gated", "host"))) == 2


@pytest.mark.parametrize(
    ("limits", "gate"),
    [
        ({"max_kl_to_base": 1e-9}, "gated_kl_to_base"),
        ({"max_delta_ratio": 1e-9}, "gated_delta_ratio"),
    ],
)
async def test_every_bound_holds_end_to_end(limits, gate):
    world = World()
    async with learner_of(
        world, LearningSettings(replay_every=4, replay_steps=3, least_trust=1.0, **limits)
    ) as learner:
        for i in range(8):
            assert (await teach(world, learner, float(i % 2))).status == "gated"
        await learner.settle()
        assert learner.stats()["counters"][gate] >= 8
        captures = list(world.host.captures.values())
        for _, weights in world.host.adapters.values():  # a refit that was taken back to the bound
            seen = await world.host.evaluate(captures, weights)
            assert seen.mean_kl_to_base <= 1e-8
            assert seen.mean_delta_ratio <= 1e-8 or gate != "gated_delta_ratio"


async def test_rollback_restores_bit_for_bit_and_takes_the_feedback_out_of_replay():
    world = World()
    async with learner_of(world) as learner:
        for i in range(4):
            await teach(world, learner, float(i % 2))
        third = (await world.store.adapter(KEY, 3)).weights
        second = (await world.store.adapter(KEY, 2)).weights
        await learner.rollback(KEY, 2)
        assert learner.resolve(request()) == AdapterRef(key=KEY, version=2)
        assert same(world.host.adapters[KEY][1], second)
        assert not same(world.host.adapters[KEY][1], third)
        assert [view["status"] for view in await learner.adapters()] == [
            "published", "published", "rolled_back", "rolled_back",
        ]  # fmt: skip
        outcome = await teach(world, learner, 1.0)
        assert str(outcome.adapter) == f"{KEY}@5"
        assert (await world.store.adapter(KEY, 5)).parent == 2
        await learner.rollback(KEY, 3)
        assert same(world.host.adapters[KEY][1], third)
        assert (await world.store.adapter(KEY, 3)).status == "published"
        with pytest.raises(NotFound):
            await learner.rollback(KEY, 99)
        with pytest.raises(NotFound):
            await learner.rollback("nonsense", 1)
        await learner.rollback(KEY, 0)
        assert learner.resolve(request()) is None
        assert KEY not in world.host.adapters
    world.host.adapters.clear()
    settings = LearningSettings(replay_every=1, replay_steps=5)
    async with learner_of(world, settings) as learner:
        assert learner.resolve(request()) is None
        await learner.tick()
        await learner.settle()
        assert learner.resolve(request()) is None, "what was taken back must not come back through replay"


async def test_pinned_versions_are_put_on_demand_and_bounded(monkeypatch):
    monkeypatch.setattr("sona_stream.engine.learner.pins._PINNED", 4)
    world = World()
    async with learner_of(world) as learner:
        for i in range(7):
            await teach(world, learner, float(i % 2))
        ref = await learner.pin(AdapterRef(key=KEY, version=3), tenant="default")
        assert ref.pinned
        assert same(world.host.adapters[f"{KEY}@3"][1], (await world.store.adapter(KEY, 3)).weights)
        for version in range(1, 8):
            await learner.pin(AdapterRef(key=KEY, version=version))
        assert sum("@" in key for key in world.host.adapters) == 4
        for bad in (AdapterRef(key=KEY, version=99), AdapterRef(key="x", version=1)):
            with pytest.raises(NotFound):
                await learner.pin(bad)


async def test_freeze_survives_a_restart_and_thaw_catches_up():
    world = World()
    settings = LearningSettings(replay_every=4, replay_steps=10)
    async with learner_of(world, settings) as learner:
        await learner.freeze()
        outcome = await teach(world, learner, 1.0)
        assert outcome.status == "accepted"
        assert "frozen" in outcome.reason
    async with learner_of(world, settings) as learner:
        for i in range(5):
            assert (await teach(world, learner, float(i % 2))).status == "accepted"
        await learner.settle()
        assert world.host.put_log == []
        await learner.thaw()
        await learner.settle()
        assert learner.resolve(request()).version == 1


@pytest.mark.parametrize("crash", ["put_capture", "put_adapter", "set_current", "put_blob", "record_outcome"])
async def test_a_crash_anywhere_loses_nothing_and_learns_nothing_twice(crash, caplog):
    """Three judgements, the process dying at `crash` in the second; the twin never crashes."""

    async def run(world, crashing):
        async with learner_of(world) as learner:
            await teach(world, learner, 1.0)
            world.store.crash_before = crash if crashing else None
            request_id, _ = world.ask()
            second = world.judge(request_id, 0.0)
            if crashing:
                with pytest.raises(ConnectionAbortedError):
                    await learner.learn(second, wait=True)
            else:
                await learner.learn(second, wait=True)
        world.store.crash_before = None
        world.host.adapters.clear()
        async with learner_of(world) as learner:
            await learner.settle()
            assert await world.store.pending_feedback() == []
            [reward] = learner.stats()["rewards"].values()
            assert reward == 0.5
            assert learner.stats()["accepted_feedback"][KEY] == 2
            return world.store.outcomes[second.id]

    plain, crashed = World(), World()
    plain.host.rng = np.random.default_rng(3)
    crashed.host.rng = np.random.default_rng(3)
    await run(plain, False)
    outcome = await run(crashed, True)
    steps = [r for r in crashed.store.records.values() if outcome.feedback_id in r.feedback_ids]
    assert len(steps) == 1
    weights = plain.store.records[KEY, 2].weights
    assert same(steps[0].weights, weights), "resuming makes the step that would have been made"
    assert same(crashed.host.adapters[KEY][1], weights), "and serves it"


async def test_where_many_wait_replays_learn_and_no_step_is_made_that_they_would_undo():
    world = World()
    async with learner_of(world, LearningSettings(replay_every=4, replay_steps=5)) as learner:
        feedbacks = [world.judge(world.ask()[0], float(i % 2)) for i in range(24)]
        for feedback in feedbacks:
            await learner.learn(feedback)
        await learner.settle()
        await learner.tick()
        await learner.settle()
        counters = learner.stats()["counters"]
        assert counters["steps"] < 12
        assert counters["replays"] >= 1
        assert learner.stats()["accepted_feedback"][KEY] == 24
        assert {one.status for one in world.store.outcomes.values()} <= {"published", "accepted"}
        taught = {f for record in world.store.records.values() for f in record.feedback_ids}
        assert taught == {one.id for one in feedbacks}
        awaited = world.judge(world.ask()[0], 1.0)
        assert "many" not in (await learner.learn(awaited, wait=True)).reason


async def test_flood_overflows_the_inbox_but_loses_nothing():
    world = World()
    async with learner_of(world, LearningSettings(inbox=4, replay_every=10_000)) as learner:
        feedbacks = [world.judge(world.ask()[0], float(i % 2)) for i in range(40)]
        statuses = [await learner.learn(feedback) for feedback in feedbacks]
        assert {one.status for one in statuses} == {"queued"}
        assert learner.stats()["inbox_overflows"] > 0
        await learner.settle()
    assert len(world.store.outcomes) == 40


async def test_the_same_feedback_twice_is_learned_once():
    world = World()
    async with learner_of(world) as learner:
        feedback = world.judge(world.ask()[0], 1.0)
        first, second = await asyncio.gather(*(learner.learn(feedback, wait=True) for _ in range(2)))
        third = await learner.learn(feedback, wait=True)
        assert first == second == third
        assert learner.stats()["served"] == {KEY: 1}


async def test_capture_gone_is_encoded_again_or_says_what_would_have_kept_it():
    world = World()
    async with learner_of(world) as learner:
        request_id, _ = world.ask()
        await world.host.release(request_id)
        outcome = await learner.learn(world.judge(request_id, 1.0), wait=True)
        assert outcome.status == "published"
        assert "encode" in world.host.calls
        request_id, _ = world.ask(prompt_ids=(), token_ids=())
        await world.host.release(request_id)
        feedback = world.judge(request_id, 1.0)
        with pytest.raises(CaptureGone, match=r"sona\.storage"):
            await learner.learn(feedback, wait=True)
        assert world.store.outcomes[feedback.id].status == "skipped"
        missing = world.judge("nobody", 1.0)
        assert (await learner.learn(missing, wait=True)).status == "skipped"


async def test_that_an_answer_is_gone_is_known_without_waiting():
    world = World()
    async with learner_of(world) as learner:
        kept, _ = world.ask()
        held, _ = world.ask(prompt_ids=(), token_ids=())
        await world.host.release(kept)
        for request_id in (kept, held, "nobody"):
            await learner.require_answer(world.judge(request_id, 1.0))
        await world.host.release(held)
        for correction in (None, "abc"):
            feedback = world.judge(held, 1.0, kind="correction" if correction else "rating", correction=correction)
            with pytest.raises(CaptureGone, match=r"sona\.storage"):
                await learner.require_answer(feedback)
            assert world.store.outcomes[feedback.id].status == "skipped"
        assert "encode" not in world.host.calls
        assert learner.stats()["counters"]["capture_gone"] == 2


async def test_other_model_is_never_served_and_is_reported(caplog):
    world = World()
    async with learner_of(world) as learner:
        await teach(world, learner, 1.0)
    moved = World(ToyHost(fingerprint="other"), world.store)
    moved.asked = 100
    async with learner_of(moved) as learner:
        assert learner.resolve(request()) is None
        assert moved.host.put_log == []
        assert "toy" in learner.stats()["problems"][0]
        outcome = await teach(moved, learner, 1.0)
        assert str(outcome.adapter) == f"{KEY}@2"
        assert moved.store.records[KEY, 2].fingerprint == "other"
        with pytest.raises(NotFound):
            await learner.rollback(KEY, 1)


async def test_finer_levels_start_from_their_parent_once_they_are_taught_enough():
    world = World()
    settings = LearningSettings(min_feedback=5, replay_every=10_000)
    code = RouteDecision(model="toy", reason="", pattern_type="CodeGen", pattern="p1")
    plain = RouteDecision(model="toy", reason="", pattern_type="Factual")
    async with learner_of(world, settings) as learner:
        for i in range(4):
            await teach(world, learner, float(i % 2), route=code)
        assert learner.resolve(request(pattern_type="CodeGen", pattern="p1")).key == KEY
        await teach(world, learner, 1.0, route=plain)
        coarse = world.host.adapters[KEY][1]
        await teach(world, learner, 0.9, route=code)
        assert learner.resolve(request(pattern_type="CodeGen", pattern="p1")).key == "toy/default/pattern:p1"
        assert learner.resolve(request(pattern_type="CodeGen", pattern="p2")).key == "toy/default/CodeGen"
        assert learner.resolve(request(pattern_type="Factual")).key == KEY
        child = world.host.adapters["toy/default/pattern:p1"][1]
        drift = np.linalg.norm(child.micro.lora_A - coarse.micro.lora_A)
        assert drift < 0.2 * np.linalg.norm(coarse.micro.lora_A), "a birth of its own would have other rows"
        served = learner.stats()["served"]
    world.host.adapters.clear()
    async with learner_of(world, settings) as learner:
        assert learner.stats()["served"] == served
        assert learner.resolve(request(pattern_type="CodeGen", pattern="p1")).key == "toy/default/pattern:p1"
        assert set(world.host.adapters) == set(served)


async def test_restart_serves_the_same_weights_and_reads_lessons_back():
    world = World()
    settings = LearningSettings(replay_every=6, replay_steps=10)
    async with learner_of(world, settings) as learner:
        for i in range(5):
            await teach(world, learner, float(i % 2))
        await learner.settle()
        before = world.host.adapters[KEY]
    world.host.adapters.clear()
    async with learner_of(world, settings) as learner:
        assert world.host.adapters[KEY][0] == before[0]
        assert same(world.host.adapters[KEY][1], before[1])
        for i in range(6):
            await teach(world, learner, float(i % 2))
        await learner.settle()
        assert learner.stats()["counters"]["replays"] == 1
        replays = [r for r in world.store.records.values() if r.reason == "replay"]
        assert len(replays[0].feedback_ids) == 6


async def test_zero_rate_changes_nothing():
    world = World()
    async with learner_of(world, rates=Rates(micro_lora_lr=0.0)) as learner:
        assert (await teach(world, learner, 1.0)).status == "accepted"
        assert world.host.put_log == []


async def test_rate_scales_the_budget_and_threshold_gates_towards():
    moves = []
    for rate in (5e-4, 2e-3):
        world = World()
        async with learner_of(world, rates=Rates(micro_lora_lr=rate)) as learner:
            await teach(world, learner, 1.0)
            moves.append((await learner.adapters())[0]["metrics"]["predicted_kl"])
    assert moves[1] > 4 * moves[0]
    world = World()
    async with learner_of(world, rates=Rates(quality_threshold=0.7)) as learner:
        outcome = await teach(world, learner, 0.6)
        assert "quality_threshold" in outcome.reason
        assert (await teach(world, learner, 0.1)).status == "published"


async def test_replay_yields_to_the_event_loop_and_one_host_call_runs_at_a_time():
    class Slow(ToyHost):
        running = most = 0

        async def gradient(self, captures, signal):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001)
            self.running -= 1
            return await super().gradient(captures, signal)

    world = World(Slow())
    settings = LearningSettings(replay_every=8, replay_steps=50)
    async with learner_of(world, settings) as learner:
        for _ in range(16):
            await learner.learn(world.judge(world.ask()[0], None, kind="correction", correction="abcdef"))
        beats = 0
        while not learner.stats()["idle"]:
            await asyncio.sleep(0.002)
            beats += 1
        assert beats > 20
        assert world.host.most == 1


async def reward_after(world, learner, wanted):
    ref = learner.resolve(request())
    hits = []
    for i in range(100):
        _, tokens = world.ask(prompt=(4, i % 7, i % 5), adapter=ref)
        hits.append(np.isin(tokens, wanted).mean())
    return float(np.mean(hits))


async def gain_from(seed, *, permuted, least_trust=1.0):
    """Change of the mean reward after 84 judgements."""
    wanted = [1, 2, 3]
    settings = LearningSettings(replay_every=16, replay_steps=30, replay_tokens=200, least_trust=least_trust)
    world, rng = World(ToyHost(seed)), np.random.default_rng(seed)
    rates = Rates(micro_lora_lr=2e-3, quality_threshold=0.0)
    async with learner_of(world, settings, rates=rates) as learner:
        before = await reward_after(world, learner, wanted)
        for _ in range(7):
            asked = [world.ask(prompt=(i, i + 1), adapter=learner.resolve(request())) for i in range(12)]
            rewards = [min(1.0, 2 * np.isin(tokens, wanted).mean()) for _, tokens in asked]
            order = rng.permutation(12) if permuted else range(12)
            for (request_id, _), i in zip(asked, order, strict=True):
                await learner.learn(world.judge(request_id, float(rewards[i])), wait=True)
                await learner.settle()  # what is learned when depends on the seed alone, not on the machine's load
        return await reward_after(world, learner, wanted) - before


async def test_judgements_move_behaviour_and_permuted_ones_do_not_systematically():
    true = [await gain_from(seed, permuted=False) for seed in (0, 2, 3)]
    permuted = [await gain_from(seed, permuted=True) for seed in (0, 2, 3)]
    assert np.mean(true) > 0.1
    assert abs(np.mean(permuted)) < 0.3 * np.mean(true)


async def test_host_without_feedback_paths_is_named():
    world = World()
    async with learner_of(world) as learner:
        request_id, _ = world.ask()
        stored = world.store.trajectories[request_id]
        world.store.trajectories[request_id] = dataclasses.replace(stored, model="elsewhere")
        outcome = await learner.learn(world.judge(request_id, 1.0), wait=True)
        assert "elsewhere" in outcome.reason
        world.store.trajectories[request_id] = dataclasses.replace(stored, learn=False)
        assert "asked not to be" in (await learner.learn(world.judge(request_id, 1.0), wait=True)).reason
        assert world.host.hidden_dim == D
        assert isinstance(world.store, MemoryStore)


async def test_an_outcome_that_cannot_be_kept_does_not_end_the_learner(caplog):
    world = World()
    async with learner_of(world) as learner:
        gone, _ = world.ask()
        world.host.captures.clear()
        world.store.trajectories[gone] = dataclasses.replace(
            world.store.trajectories[gone], token_ids=(), prompt_ids=()
        )
        world.store.crash_before = "record_outcome"
        with pytest.raises(ConnectionAbortedError):
            await asyncio.wait_for(learner.learn(world.judge(gone, 1.0), wait=True), 5)
        world.store.crash_before = None
        assert (await asyncio.wait_for(teach(world, learner, 1.0), 5)).status == "published"


async def test_a_fallback_gets_its_own_models_adapter():
    world, other = World(), ToyHost()
    async with Learner({"toy": world.host, "other": other}, world.store, Rates(), INSTANT) as learner:
        await teach(world, learner, 1.0)
        assert learner.resolve(request()) is not None
        fallen = dataclasses.replace(request(), model="other")
        assert learner.resolve(fallen) is None, "an adapter of another model"


async def test_a_correction_whose_text_is_gone_teaches_nothing():
    """Its text may expire while it waits. The answer that it was to replace is the last thing to be imitated."""
    world = World()
    async with learner_of(world) as learner:
        request_id, _ = world.ask()
        feedback = world.judge(request_id, None, kind="correction")
        with pytest.raises(CaptureGone, match="correction"):
            await learner.learn(feedback, wait=True)
        assert world.store.outcomes[feedback.id].status == "skipped"
        assert world.host.put_log == []


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.01)


async def test_feedback_that_failed_is_tried_again_without_a_restart(monkeypatch, caplog):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.05)
    world = World()
    async with learner_of(world) as learner:
        for crash in ("put_capture", "record_outcome"):
            world.store.crash_before = crash
            feedback = world.judge(world.ask()[0], 1.0)
            with pytest.raises(ConnectionAbortedError):
                await learner.learn(feedback, wait=True)
            failures = learner.stats()["counters"]["failures"]
            await until(lambda: learner.stats()["counters"]["failures"] > failures)  # noqa: B023
            world.store.crash_before = None
            assert (await teach(world, learner, 1.0)).status in ("published", "accepted"), "others need not wait"
            await until(lambda: feedback.id in world.store.outcomes)  # noqa: B023
        assert learner.stats()["accepted_feedback"][KEY] == 4, "each was learned once"
        assert len([r for r in world.store.records.values() if feedback.id in r.feedback_ids]) <= 1


async def test_a_store_that_cannot_be_read_does_not_end_the_learner(monkeypatch, caplog):
    monkeypatch.setattr("sona_stream.engine.learner.inbox._FIRST_PAUSE_S", 0.02)
    world, read = World(), MemoryStore.pending_feedback

    async def broken(store):
        raise ConnectionAbortedError

    left = world.judge(world.ask()[0], 1.0)
    monkeypatch.setattr(MemoryStore, "pending_feedback", broken)
    async with learner_of(world) as learner:
        assert (await teach(world, learner, 0.0)).status == "published"
        monkeypatch.setattr(MemoryStore, "pending_feedback", read)
        await until(lambda: left.id in world.store.outcomes)


async def test_what_is_noted_for_replay_is_bounded_while_frozen():
    world = World()
    settings = LearningSettings(replay_every=2, replay_capacity=3, replay_steps=2)
    async with learner_of(world, settings) as learner:
        await learner.freeze()
        for _ in range(8):
            await teach(world, learner, 1.0)
        await learner.settle()
        [ledger] = learner._state.ledgers.values()
        assert [len(news) for news in ledger.news.values()] == [3]
        await learner.thaw()
        await learner.settle()
        assert len(world.store.records[KEY, 1].feedback_ids) == 3
