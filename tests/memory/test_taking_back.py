"""What undo reads: one judgement, and what that made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sona_stream.app.taking_back import TakingBack
from sona_stream.errors import FeedbackConflict
from sona_stream.events import Feedback, FeedbackOutcome, Principal

ALICE = Principal(tenant="acme", user="alice", key_id="k1")
SKIPPED = FeedbackOutcome(feedback_id="", status="skipped", reason="learning is off")


class Undoing(TakingBack):
    """Everything else of an application is left out."""

    def __init__(self, memory, said):
        async def by(principal, request_id=None):
            for feedback in said:
                if request_id in (None, feedback.request_id):
                    yield feedback, SKIPPED

        async def trajectory(request_id, *, tenant):
            return None

        async def record_outcome(outcome):
            self.outcomes.append(outcome.feedback_id)

        self.outcomes, self.read = [], []
        self.store = SimpleNamespace(trajectory=trajectory, record_outcome=record_outcome)
        self._said, self._learner = SimpleNamespace(by=by), None
        self._memory = SimpleNamespace(memory=memory)
        latest = memory._store.latest

        async def counted(**asked):
            found = await latest(**asked)
            self.read += found
            return found

        memory._store.latest = counted


def correction(number):
    values = {"tenant": "acme", "key_id": "k1", "user": "alice", "kind": "correction", "correction": "x"}
    return Feedback(id=f"f{number}", request_id=f"r{number}", **values)


@pytest.mark.parametrize("storage", ["none", "text"])
async def test_it_reads_no_more_than_what_that_judgement_made(opened, make, storage):
    async with opened(storage) as (_, memory):
        for number in range(30):
            given = {"feedback_id": f"f{number}", "request_id": f"r{number}"}
            await memory.remember(make.record(f"Where is Town{number}?", answer=str(number), **given))
        undoing = Undoing(memory, [correction(number) for number in range(29, -1, -1)])
        taken = await undoing.undo(ALICE)
        assert (taken["feedback"], undoing.outcomes) == ("f29", ["f29"])
        assert [one.feedback_id for one in undoing.read] == ["f29"]
        assert make.acting(memory, "Where is Town29?") == []
        assert (await undoing.undo(ALICE, request_id="r7"))["feedback"] == "f7"
        assert [one.feedback_id for one in undoing.read] == ["f29", "f7"]


async def test_what_can_be_taken_back_instead_is_named(opened, make):
    async with opened("text") as (_, memory):
        for number in range(5):
            given = {"feedback_id": f"f{number}", "request_id": f"r{number}"}
            kept = await memory.remember(make.record(f"Where is Town{number}?", answer=str(number), **given))
        await memory.promote(kept.episode.key, "tenant", by="boss")
        undoing = Undoing(memory, [correction(4)])
        with pytest.raises(FeedbackConflict, match="correction that can be is of request r3"):
            await undoing.undo(ALICE)
        assert len(undoing.read) == 3
