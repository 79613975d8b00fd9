"""What is taken back leaves the weights, whatever else brought it there, and whatever begins in the same moment."""

import itertools

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_learner_hosts import settled
from test_unlearning import CODE, KEY, LATE, ROOT, Given, learner_of, lessons, replayed
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner import Learner, inbox
from sona_stream.engine.learner.baseline import Running
from sona_stream.engine.learner.gates import Verdict
from sona_stream.errors import HostError
from sona_stream.events import RouteDecision

SLOW = LearningSettings(replay_every=10_000, replay_steps=4, consolidate_every=1, base_steps=4)


async def cycled_on_time(learner):
    """The interval passes, and nobody asks for anything."""
    learner._background._last = 0.0
    learner._background._wake.set()
    await anyio.wait_all_tasks_blocked()
    await learner.settle()


async def refuse(*_):
    return Verdict("kl", "too far", {})


@pytest.mark.parametrize("forced", [False, True], ids=["on time", "forced after a replay that no gate let through"])
async def test_what_waits_for_a_replay_and_was_in_a_cycle_leaves_the_weights_and_the_domains(forced):
    world = World()
    async with learner_of(world, SLOW) as learner:
        for text in ("abc", "cab", "abd"):
            await Given(world, text=text).learned(learner)
        await replayed(learner)
        before = world.host.adapters[KEY][0]
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        if forced:
            gate, learner._state.gate = learner._state.gate, refuse
            await replayed(learner)
            learner._state.gate = gate
            learner._background.request_new = lambda: None
            await learner.force_learn()
        else:
            await cycled_on_time(learner)
        reasons = [record.reason for record in world.store.records.values()]
        assert reasons == ["replay", "consolidate", "background"]
        [domain] = await learner._state.domains.of(ROOT, world.host.fingerprint)
        assert wrong.id in [feedback_id for _, feedback_id in domain.kept]
    async with learner_of(world, SLOW) as learner:  # whoever ends in between: it is durable
        await wrong.taken_back(learner)
        await learner.settle()
        assert [world.store.records[KEY, version].status for version in (2, 3)] == ["withdrawn", "withdrawn"]
        [version] = learner.stats()["served"].values()
        assert version == before or world.store.records[KEY, version].parent == before
        assert await learner._state.domains.of(ROOT, world.host.fingerprint) == []
        await cycled_on_time(learner)
        last = world.store.records[KEY, learner.stats()["served"][KEY]]
        assert last.reason == "background", "for the others it is due again"


async def test_what_a_replay_learned_leaves_the_weights_though_nobody_could_note_that_it_did():
    world = World()
    async with learner_of(world) as learner:
        await Given(world, text="abc").learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)

        async def dies(*_, **__):
            raise ConnectionAbortedError("crashed")

        learner._state.replayed = dies
        await replayed(learner)
        assert learner.stats()["served"] == {KEY: 2}
    async with learner_of(world) as learner:
        assert (await learner._state.ledger(ROOT)).news == {"*": [wrong.id]}
        await wrong.taken_back(learner)
        await learner.settle()
        assert world.store.records[KEY, 2].status == "withdrawn"
        assert learner.stats()["served"] != {KEY: 2}


async def test_what_comes_after_a_cycle_and_only_waits_costs_nobody_a_version():
    world = World()
    async with learner_of(world, SLOW) as learner:
        for text in ("abc", "cab", "abd"):
            await Given(world, text=text).learned(learner)
        await replayed(learner)
        await cycled_on_time(learner)
        served, puts = learner.stats()["served"], len(world.host.put_log)
        waiting = Given(world, text="lmlm")
        await waiting.learned(learner)
        await waiting.taken_back(learner)
        await learner.settle()
        assert (learner.stats()["served"], len(world.host.put_log)) == (served, puts)


async def test_a_replay_that_becomes_due_in_the_same_moment_is_void():
    world = World()
    async with learner_of(world, LATE) as learner:
        kept, wrong = Given(world, text="abc"), Given(world, text="lmlm")
        for one in (kept, wrong):
            await one.learned(learner)
        real = world.store.outcome

        async def outcome(feedback_id):
            world.store.outcome = real
            await learner.tick()
            for _ in range(3):  # as long as a store reads on a thread
                await anyio.lowlevel.checkpoint()
            return await real(feedback_id)

        world.store.outcome = outcome
        await wrong.taken_back(learner)
        await learner.settle()
        [version] = learner.stats()["served"].values()
        assert world.store.records[KEY, version].feedback_ids == (kept.id,)
        assert world.store.records[KEY, version].parent is None, "nothing of it but from before"
        assert await lessons(learner) == [kept.id]


FACT = RouteDecision(model="toy", reason="test", pattern_type="Factual")
MATH = RouteDecision(model="toy", reason="test", pattern_type="Math")
FINE = LearningSettings(replay_every=10_000, replay_steps=4, min_feedback=1, least_trust=1.0)
CODEGEN, FACTUAL = f"{KEY[:-1]}CodeGen", f"{KEY[:-1]}Factual"


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_level_that_began_as_one_that_held_it_goes_back_too(restarts):
    world = World()
    async with learner_of(world, FINE) as learner:
        await Given(world, 0.9, text=None, route=FACT).learned(learner)
        wrong = Given(world, 0.9, text=None, route=FACT)
        await wrong.learned(learner)
        own = Given(world, 0.9, text=None, route=CODE)
        await own.learned(learner)
        assert world.store.records[CODEGEN, 1].feedback_ids == (own.id,)
        if not restarts:
            await wrong.taken_back(learner)
            await learner.settle()
    if restarts:
        async with learner_of(world, FINE, hosts={}) as learner:
            await wrong.taken_back(learner)
        async with learner_of(world, FINE) as learner:
            await learner.settle()
    assert world.store.records[CODEGEN, 1].status == "withdrawn"
    assert world.store.records[FACTUAL, 1].status == "published"
    async with learner_of(world, FINE) as learner:
        version = learner.stats()["served"].get(CODEGEN, 1)
        assert version == 1 or world.store.records[CODEGEN, version].parent is None, "from the level above again"


async def test_a_level_that_began_before_or_from_what_only_waited_stays():
    world = World()
    async with learner_of(world, FINE) as learner:
        await Given(world, 0.9, text=None, route=FACT).learned(learner)
        await Given(world, 0.9, text=None, route=CODE).learned(learner)
        wrong = Given(world, 0.9, text=None, route=FACT)
        await wrong.learned(learner)
        await wrong.taken_back(learner)
        await learner.settle()
        assert world.store.records[CODEGEN, 1].status == "published"
        waiting = Given(world, route=FACT)
        await waiting.learned(learner)
        await Given(world, 0.9, text=None, route=MATH).learned(learner)
        await waiting.taken_back(learner)
        await learner.settle()
        assert world.store.records[f"{KEY[:-1]}Math", 1].status == "published"


async def test_no_level_begins_as_one_that_is_still_to_go_back():
    world = World()
    async with learner_of(world, FINE) as learner:
        wrong = Given(world, 0.9, text=None, route=FACT)
        await wrong.learned(learner)
        world.host.refuse_put = True
        await wrong.taken_back(learner)
        real = world.host.drop_adapter

        async def drop_adapter(key):
            raise HostError("not now")

        world.host.drop_adapter = drop_adapter
        await learner.settle()
        world.host.refuse_put = False
        begins, state = {}, learner._state
        birth = state.birth

        async def noted(line, *args):
            begins[line.key.group], moments = await birth(line, *args)
            return begins[line.key.group], moments

        state.birth = noted
        await Given(world, 0.9, text=None, route=CODE).learned(learner)
        assert not begins["CodeGen"].micro.lora_B.any(), "an adapter that changes nothing"
        world.host.drop_adapter = real


# ---- where it goes back to


@pytest.mark.parametrize("pruned", [False, True])
async def test_it_goes_back_to_what_was_served_not_to_what_no_host_took(pruned):
    world = World()
    async with learner_of(world) as learner:
        kept = Given(world, 1.0, text=None)
        await kept.learned(learner)
        refused = Given(world, 0.0, text=None)
        world.host.refuse_put = True
        assert (await refused.learned(learner)).status == "gated"
        world.host.refuse_put = False
        await refused.taken_back(learner)
        await learner.settle()
        if pruned:
            await Given(world, 0.9, text=None).learned(learner)
        wrong = Given(world, 0.9, text=None)
        assert (await wrong.learned(learner)).status == "published"
        if pruned:
            del world.store.records[KEY, 3]
        learner._state.gate = refuse
        await wrong.taken_back(learner)
        await learner.settle()
        [version] = learner.stats()["served"].values()
        assert world.store.records[KEY, version].feedback_ids == (kept.id,)


async def test_another_models_versions_are_not_served_again_when_it_comes_back():
    first, world = ToyHost(), World()
    async with learner_of(world, SLOW, hosts={"toy": first}) as learner:
        for text in ("abc", "cab", "abd"):
            await Given(world, text=text).learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await replayed(learner)
        await cycled_on_time(learner)
        await learner.attach("toy", ToyHost(seed=5, fingerprint="another"))
        await wrong.taken_back(learner)
        await learner.settle()
        assert (await learner._state.ledger(ROOT)).undone == {}
        await learner.attach("toy", first)
        assert learner.stats()["served"] == {KEY: 1}, "from the first moment on"
        assert await learner._state.domains.of(ROOT, first.fingerprint) == []
        await replayed(learner)
        [version] = learner.stats()["served"].values()
        assert world.store.records[KEY, version].created_at < wrong.at or version > 4


async def test_an_undo_under_observe_keeps_what_was_observed_before():
    world = World()
    async with Learner({"toy": world.host}, world.store, Rates(), LATE, "observe") as learner:
        for quality in (1.0, 0.0):
            await Given(world, quality, text=None).learned(learner)
        wrong = Given(world, 1.0, text=None)
        await wrong.learned(learner)
        after = Given(world, 0.0, text=None)
        await after.learned(learner)
        learner._state.gate = refuse
        await wrong.taken_back(learner)
        await learner.settle()
        working = learner._state.versions.line(ROOT).working
        assert (working.version, working.status) == (2, "observed")
        assert [world.store.records[KEY, n].status for n in (1, 2, 3, 4)] == ["observed"] * 2 + ["withdrawn"] * 2
        assert world.host.adapters == {}, "nobody is served any of it"
        ledger = await learner._state.ledger(ROOT)
        assert after.id in ledger.news["*"]
        assert wrong.id not in ledger.news["*"]
        assert ledger.undone == {}
    async with Learner({"toy": world.host}, world.store, Rates(), LATE, "observe") as learner:
        assert learner._state.versions.line(ROOT).working.version == 2, "also after a restart"


# ---- what fails is tried again


@pytest.mark.parametrize("fails", ["host", "store"])
async def test_one_that_could_not_go_back_is_tried_again_after_longer_and_longer_pauses(fails, monkeypatch):
    monkeypatch.setattr(inbox, "_FIRST_PAUSE_S", 0.02)
    world = World()
    async with learner_of(world) as learner:
        await Given(world, text="abc").learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await replayed(learner)
        tries, real = [], learner._state.versions.going_back

        def going_back(*args, **more):
            tries.append(anyio.current_time())
            return real(*args, **more)

        learner._state.versions.going_back = going_back
        if fails == "host":
            world.host.refuse_put = True
        else:
            world.store.crash_before = "set_current"
        await wrong.taken_back(learner)
        await learner.settle()
        assert learner.stats()["idle"], "whoever waits for what is due does not wait for this"
        await settled(lambda: len(tries) >= 4)
        pauses = [b - a for a, b in itertools.pairwise(tries)]
        assert all(pause >= 0.02 * 2**n for n, pause in enumerate(pauses)), pauses
        world.host.refuse_put, world.store.crash_before = False, None
        ledger = await learner._state.ledger(ROOT)
        await settled(lambda: not ledger.undone)
        await learner.settle()
        assert world.store.records[KEY, 2].status == "withdrawn"
        [version] = learner.stats()["served"].values()
        assert version != 2
        assert not learner._background._late


# ---- it stays away


async def test_it_is_gone_from_the_store_however_much_else_is_taken_back_later():
    world = World()
    async with learner_of(world) as learner:
        wrong, kept = Given(world, text="lmlm"), Given(world, text="abc")
        for one in (wrong, kept):
            await one.learned(learner)
        await wrong.taken_back(learner)
        assert [name for kept in world.store.kept.values() for name in kept] == [kept.id]
        ledger = await learner._state.ledger(ROOT)
        for i in range(1100):
            ledger.withdraw([f"other-{i}"])
        await ledger.save(world.store)
    async with learner_of(world) as learner:
        assert not (await learner._state.ledger(ROOT)).withdrawn(wrong.id), "as many ids are remembered as may wait"
        assert await lessons(learner) == [kept.id]


async def test_the_answers_of_a_domain_that_is_forgotten_go_with_it():
    world = World()
    async with learner_of(world, SLOW) as learner:
        for text in ("abc", "cab", "abd"):
            await Given(world, text=text).learned(learner)
        await replayed(learner)
        wrong = Given(world, text="lmlm")
        await wrong.learned(learner)
        await cycled_on_time(learner)
        [place] = [name for name in world.store.kept if "domain:" in name]
        assert len(world.store.kept[place]) == 4
        await wrong.taken_back(learner)
        await learner.settle()
        assert not world.store.kept[place]


# ---- nor does it count


@pytest.mark.parametrize("away", [False, True], ids=["at once", "with the host away"])
async def test_what_is_taken_back_counts_no_more_and_moves_no_baseline(away):
    world, settings = World(), LearningSettings(replay_every=10_000, min_feedback=8)
    judged = []
    async with learner_of(world, settings) as learner:
        for i in range(4):
            await Given(world, 0.25 * i, text=None, route=CODE).learned(learner)
        before = _runnings(await learner._state.ledger(ROOT))
        for _ in range(8):
            judged.append(Given(world, 0.0, text=None, route=CODE))
            await judged[-1].learned(learner)
            if not away:
                await judged[-1].taken_back(learner)
                await learner.settle()
    async with learner_of(world, settings, hosts={} if away else None) as learner:
        for one in judged:
            await one.taken_back(learner)
            await one.taken_back(learner)
    async with learner_of(world, settings) as learner:
        ledger = await learner._state.ledger(ROOT)
        assert ledger.counts == {"*": 4, "CodeGen": 4}
        assert ledger.unfolded == {"*": 4, "CodeGen": 4}
        for now, then in zip(_runnings(ledger), before, strict=True):
            assert now == pytest.approx(then)
        assert not learner._state.active(ROOT.at("CodeGen"))


def _runnings(ledger):
    data = ledger.baseline.to_json()
    return [data["tenant"], *data["patterns"].values()]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=128), st.data())
def test_a_judgement_that_is_pulled_was_never_pushed(values, data):
    gone = data.draw(st.integers(0, len(values) - 1))
    pulled, never = Running(), Running()
    for i, value in enumerate(values):
        pulled.push(value)
        if i != gone:
            never.push(value)
    pulled.pull(values[gone])
    assert pulled.n == never.n
    assert pulled.mean == pytest.approx(never.mean, abs=1e-9)
    assert pulled.variance == pytest.approx(never.variance, abs=1e-9)


def test_beyond_the_window_it_stays_a_mean_of_qualities():
    running = Running()
    for i in range(1000):
        running.push(float(i % 2))
    for i in range(400):
        running.pull(1.0)
        assert 0.0 <= running.mean <= 1.0
        assert running.variance >= 0.0
        assert running.n == 999 - i
