"""What is learned of answers does not change text that has nothing to do with them."""

import dataclasses

import numpy as np
import pytest
from test_learner_life import learner_of
from toy import D, ToyHost, World

from sona_stream.config.settings import LearningSettings
from sona_stream.engine.learner.elsewhere import elsewhere_of
from sona_stream.engine.learner.ewc import Elastic, factored_penalty
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.errors import HostAway, HostError
from sona_stream.lora import LoraGradient, LoraWeights, LowRank
from sona_stream.reference import REFERENCE_TEXT

SETTINGS = LearningSettings(replay_every=16, replay_steps=8, replay_tokens=200, least_trust=1.0)


class Reader(ToyHost):
    """A toy whose states of the reference text lie apart from those of its answers."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.reads_elsewhere = True
        self.apart = np.random.default_rng(99).standard_normal(D) * 3

    async def encode(self, prompt_ids, answer, **more):
        capture = await super().encode(prompt_ids, answer, **more)
        if answer[:40] != REFERENCE_TEXT[:40]:
            return capture
        return dataclasses.replace(capture, hidden=(capture.hidden + self.apart).astype(np.float32))


def pair(seed, rank=2):
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((rank, D)), rng.standard_normal((D, rank))
    return LoraWeights(LowRank(A.astype(np.float32), B.astype(np.float32)))


async def test_the_first_row_of_a_new_adapter_acts_on_answers_and_not_elsewhere():
    world = World(Reader())
    for i in range(90):
        world.ask(prompt=(i % 7, i % 5, 4))
    found = await elsewhere_of(world.host)
    captures = list(world.host.captures.values())
    curvature = await world.host.curvature(captures[:70], found.hidden)
    here = np.concatenate([one.hidden for one in captures[70:]])
    assert curvature.tokens > 256
    for rank in (1, 2, 4):
        A = initial_weights(curvature, rank, "k").micro.lora_A
        assert (here @ A[0]).mean() == pytest.approx(1.0, abs=0.2)
        assert abs((found.hidden @ A[0]).mean()) < 0.1
        np.testing.assert_array_equal(A[1:2], curvature.constant[None][: rank - 1])
    few = await world.host.curvature(captures[:5], found.hidden)
    np.testing.assert_array_equal(initial_weights(few, 2, "k").micro.lora_A[0], few.constant)


async def test_its_penalty_is_added_beside_the_domains_and_stiffens_steps():
    found = await elsewhere_of(Reader())
    w, rng = pair(1), np.random.default_rng(0)
    gradient = LoraGradient(np.ones((2, D), np.float32), np.ones((D, 2), np.float32), None, None, 10, 1.0, 0.0, 0.0)
    held = Elastic(0.0, [], 8, None, elsewhere=found.domain, pull=3.0)
    added = await held.added(ToyHost(), gradient, w, rng)
    pull = factored_penalty(found.domain, w)
    np.testing.assert_allclose(added.micro_B, gradient.micro_B + 3.0 * 10 * pull.micro_B, rtol=1e-4)
    assert added.loss == pytest.approx(1.0 + 30 * pull.loss, rel=1e-5)
    states, A = found.hidden.astype(np.float64), w.micro.lora_A.astype(np.float64)
    moment = 3.0 * (states @ A.T).T @ (states @ A.T) / len(states)
    stiff = held.stiffness(w.micro, found.domain.outputs)
    np.testing.assert_allclose(stiff, np.abs(moment).sum(axis=1), rtol=1e-3)
    assert np.linalg.eigvalsh(np.diag(stiff) - moment).min() > -1e-3 * stiff.max()
    white = np.linalg.inv(moment).astype(np.float32)
    assert held.stiffness(w.micro, found.domain.outputs, white) == pytest.approx(2.0, rel=1e-3)  # the trace of 1
    louder = dataclasses.replace(found.domain.outputs, values=found.domain.outputs.values / 5)
    assert held.stiffness(w.micro, louder)[0] / stiff[0] == pytest.approx(5.0, rel=0.1)


async def test_a_host_that_cannot_read_it_is_taught_without_and_one_that_is_away_is_waited_for(caplog):
    class Away(ToyHost):
        async def encode(self, *args, **more):
            raise HostAway("gone")

    assert await elsewhere_of(ToyHost()) is None
    assert "nothing holds learned adapters on text from elsewhere" in caplog.text
    with pytest.raises(HostAway):
        await elsewhere_of(Away())


async def test_a_small_context_reads_the_beginning():
    class Small(Reader):
        async def encode(self, prompt_ids, answer, **more):
            if len(answer) > 1500:
                raise HostError("the model's context is 1500")
            return await super().encode(prompt_ids, answer, **more)

    assert len((await elsewhere_of(Small())).hidden) == len(REFERENCE_TEXT) // 2


async def test_it_is_read_once_and_again_for_another_model_and_the_rows_survive_a_restart():
    world = World(Reader())
    reads = lambda: world.host.calls.count("encode")  # noqa: E731
    async with learner_of(world, SETTINGS) as learner:
        for _ in range(3):
            asked, _ = world.ask()
            await learner.learn(world.judge(asked, 0.9), wait=True)
        assert reads() == 1
        known = learner._state.measurements._curvatures[learner._state.versions.lines()[0].key]
    async with learner_of(world, SETTINGS) as learner:
        asked, _ = world.ask()
        await learner.learn(world.judge(asked, 0.1), wait=True)
        again = learner._state.measurements._curvatures[learner._state.versions.lines()[0].key]
        np.testing.assert_array_equal(again.contrast, known.contrast)
        assert reads() == 2
