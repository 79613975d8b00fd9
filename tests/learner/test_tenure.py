"""Since when a model has stood behind its name, also where the clock was wrong when it came."""

from __future__ import annotations

import dataclasses
import time

import pytest
from toy import Rates, ToyHost, World

from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.tenure import answering_since
from sona_stream.errors import CaptureGone
from sona_stream.store import create_store

DAY = 86400.0
real = time.time


@pytest.fixture
def clock(monkeypatch):
    """``clock(days)``: how far ahead it is."""
    return lambda days: monkeypatch.setattr(time, "time", lambda: real() + days * DAY)


async def test_a_clock_that_was_ahead_holds_nothing_up(tmp_path, clock):
    async with create_store(SonaSettings(), directory=tmp_path) as store:
        assert await answering_since(store, "m", "one") == 0.0
        clock(365)
        assert await answering_since(store, "m", "two") > real() + 364 * DAY
        clock(0)
        since = await answering_since(store, "m", "two")
        assert abs(since - real()) < 60
        clock(3)
        assert await answering_since(store, "m", "two") == since, "the answers given from then on are its own"


async def test_what_is_remembered_although_another_model_answered_is_said():
    world, asked = World(), []

    async def remember(feedback):
        asked.append(feedback.kind)
        return "1-ab" if feedback.correction else ""

    settings = LearningSettings(replay_every=10_000)
    async with Learner(
        {"toy": world.host}, world.store, Rates(), settings, "feedback", remember=remember
    ) as learner:
        request_id, _ = world.ask()
        answers = world.store.trajectories
        answers[request_id] = dataclasses.replace(answers[request_id], started_at=1.0)
        await learner.attach("toy", ToyHost(seed=4, fingerprint="other"))
        with pytest.raises(CaptureGone, match="another model"):
            await learner.learn(world.judge(request_id, 1.0), wait=True)
        assert asked == []
        outcome = await learner.learn(
            world.judge(request_id, None, kind="correction", correction="right"), wait=True
        )
        assert outcome.status == "skipped"
        assert outcome.reason.startswith("remembered as 1-ab; no adapter learns from it: request ")
        assert "another model" in outcome.reason
        assert world.store.outcomes[outcome.feedback_id] == outcome
        assert learner.stats()["served"] == {}
