"""Earlier answers held by a real host: the tiny model learns other answers under a rising `ewc_lambda`."""

from __future__ import annotations

import numpy as np
import pytest

from sona_stream.engine.learner.consolidation import empty_base
from sona_stream.engine.learner.domains import Domain
from sona_stream.engine.learner.elsewhere import elsewhere_of
from sona_stream.engine.learner.ewc import Elastic
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.engine.learner.lessons import Lesson
from sona_stream.engine.learner.optimiser import Pace
from sona_stream.engine.learner.replay import Plan, Weighed, fit
from sona_stream.engine.learner.turns import TakingTurns
from sona_stream.errors import HostError
from sona_stream.lora import LoraWeights
from sona_stream.protocols import RetainingHost
from sona_stream.reference import REFERENCE_TEXT


async def taught(host, answers, start, curvature, elastic, *, slow):
    """Where twelve steps towards these answers lead from `start`."""
    lessons = [Weighed(Lesson(c, None, ("*",), c.request_id), 1.0) for c in answers]
    plan, pace = Plan(12, 64, 40, 0.01, (0.5, 2.0), 8.0, 0.5, 5.0), Pace(curvature, 0.1, 0.004, 1.0)
    moments = {"rms": np.asarray([curvature.rms], np.float32)}
    return (await fit(host, lessons, start, moments, plan, pace, seed=0, slow=slow, elastic=elastic)).weights


@pytest.mark.parametrize("slow", [False, True], ids=["micro", "base"])
async def test_forgetting_falls_as_ewc_lambda_rises(backend, slow):
    host = TakingTurns(backend.host)
    assert isinstance(backend.host, RetainingHost)
    assert host.retains
    r = np.random.default_rng(0)

    async def answers(low):
        drawn = [(r.integers(3, 40, 5), r.integers(low, low + 12, 24)) for _ in range(4)]
        return [await host.encode(*pair, request_id=f"{low}-{n}") for n, pair in enumerate(drawn)]

    old, new = await answers(3), await answers(60)
    curvature = await host.curvature(old)
    start = LoraWeights(initial_weights(curvature, 2, "k").micro, empty_base(curvature.inputs, 4))
    held = Domain("old", 1, start, tuple((c, c.request_id) for c in old), curvature.outputs, curvature.inputs)
    moved = []
    for strength in (0.0, 500.0, 2000.0):
        elastic = Elastic(strength, [held], 64, 40)
        fitted = await taught(host, new, start, curvature, elastic, slow=slow)
        moved.append(await host.predicted_kl(old, start, fitted))
    assert moved == sorted(moved, reverse=True), moved
    assert moved[-1] < 0.5 * moved[0]


@pytest.mark.parametrize("slow", [False, True], ids=["micro", "base"])
async def test_less_changes_elsewhere_as_its_pull_rises(backend, slow):
    host, r = TakingTurns(backend.host), np.random.default_rng(1)
    found = await elsewhere_of(host)
    text = await host.encode((0,), REFERENCE_TEXT[:500], request_id="text")
    drawn = [(r.integers(3, 40, 5), r.integers(60, 72, 24)) for _ in range(4)]
    answers = [await host.encode(*pair, request_id=f"answer-{n}") for n, pair in enumerate(drawn)]
    curvature = await host.curvature(answers, found.hidden)
    start = LoraWeights(initial_weights(curvature, 2, "k").micro, empty_base(curvature.inputs, 4))
    moved = []
    for pull in (0.0, 0.5, 8.0):
        elastic = Elastic(0.0, [], 64, 40, elsewhere=found.domain, pull=pull)
        fitted = await taught(host, answers, start, curvature, elastic, slow=slow)
        moved.append([await host.predicted_kl(part, start, fitted) for part in ([text], answers)])
    elsewhere, here = np.transpose(moved)
    assert list(elsewhere) == sorted(elsewhere, reverse=True), elsewhere
    assert elsewhere[-1] < 0.3 * elsewhere[0]
    assert here[-1] / elsewhere[-1] > here[0] / elsewhere[0]


async def test_penalty_checks_what_it_is_given(backend):
    host = backend.host
    capture = await host.encode([3, 4], [5, 6, 7])
    curvature = await host.curvature([capture])
    weights = initial_weights(curvature, 2, "k")
    with pytest.raises(HostError, match="top_k"):
        await host.penalty([capture], weights, weights, top_k=0)
    assert (await host.penalty([capture], weights, weights)).loss == 0
