"""A real `kill -9` at random moments, again and again on one folder."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

from sona_stream.store import maintenance

ROUNDS = 4

CHILD = """
import asyncio, sys, time
from pathlib import Path
import numpy as np
from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.events import Feedback, FeedbackOutcome, Trajectory
from sona_stream.lora import AdapterRecord, Capture, LoraWeights, LowRank
from sona_stream.store import create_store

KEY, ROUND = "m/t/*", sys.argv[2]

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

async def give(store, worker):
    for n in range(100000):
        id = f"f{ROUND}-{worker}-{n}"
        kind = "correction" if n % 5 == 0 else "rating"
        say("asks", id)
        await store.commit_feedback(
            Feedback(id=id, request_id=id, tenant="t", key_id="k", kind=kind, created_at=time.time(),
                     quality=None if n % 5 == 0 else 0.5, correction="better " * 50 if n % 5 == 0 else None)
        )
        say("feedback", id)
        if n % 3 == 0:
            await store.record_outcome(FeedbackOutcome(feedback_id=id, status="accepted"))
            say("outcome", id)

async def walk(store):
    for n in range(100000):
        id = f"r{ROUND}-{n}"
        store.submit_trajectory(Trajectory(request_id=id, tenant="t", key_id="k", token_ids=tuple(range(200)),
                                           started_at=time.time()))
        say("trajectory", id)
        await asyncio.sleep(0.003)

async def learn(store):
    version = max([one.version for one in await store.adapters(KEY)], default=0)
    rng = np.random.default_rng(0)
    while True:
        version += 1
        pair = LowRank(rng.standard_normal((2, 64)).astype("f4"), rng.standard_normal((64, 2)).astype("f4"))
        await store.put_adapter(AdapterRecord(key=KEY, version=version, parent=None, fingerprint="fp",
                                              weights=LoraWeights(pair), moments={"m": pair.lora_A}))
        await store.set_current(KEY, version, reason="step")
        say("adapter", version)
        tokens = np.arange(9, dtype=np.int32)
        capture = Capture(request_id=f"c{version}", fingerprint="fp", prompt_ids=tokens, token_ids=tokens,
                          hidden=rng.standard_normal((9, 64)).astype("f4"), logprobs=np.zeros(9, "f4"),
                          adapter_versions=tokens)
        await store.put_capture(KEY, capture, 1.0, feedback_id=f"c{version}")
        await store.prune_adapters(KEY, keep=3)
        await store.put_blob("patterns", bytes([version % 256]) * 20000)

async def teach(store):
    key = "m/t/taught"
    version = max([one.version for one in await store.adapters(key)], default=0)
    while True:
        version += 1
        given = Feedback(id=f"t{ROUND}-{version}", request_id="t", tenant="t", key_id="k", kind="rating",
                         quality=0.5, created_at=time.time())
        await store.commit_feedback(given)
        pair = LowRank(np.full((2, 64), version, "f4"), np.zeros((64, 2), "f4"))
        writes = store.together()
        writes.put_adapter(AdapterRecord(key=key, version=version, parent=None, fingerprint="fp",
                                         weights=LoraWeights(pair), feedback_ids=(given.id,)))
        await writes.commit()
        writes.set_current(key, version, reason="step")
        writes.prune_adapters(key, keep=3)
        writes.put_blob("taught", str(version).encode())
        writes.record_outcome(FeedbackOutcome(feedback_id=given.id, status="published", reason=str(version)))
        await writes.commit()
        say("taught", version)

async def main():
    settings = SonaSettings(learner=LearningSettings(replay_capacity=4))
    async with create_store(settings, directory=Path(sys.argv[1])) as store:
        say("open")
        await asyncio.gather(walk(store), learn(store), teach(store), *(give(store, worker) for worker in range(4)))

asyncio.run(main())
"""


KINDS = {"feedback", "outcome", "adapter", "taught", "trajectory"}


def live_and_die(folder, number, seconds):
    """What the child said before it was killed ``seconds`` after its first word; the first one is let live until it
    has done something of each kind.
    """
    log = folder.with_name(f"said-{number}")
    with (
        log.open("w") as out,
        subprocess.Popen([sys.executable, "-c", CHILD, folder, str(number)], stdout=out) as child,
    ):
        while child.poll() is None and not log.stat().st_size:
            time.sleep(0.01)
        while number == 0 and child.poll() is None and not {line[0] for line in said_in(log)} >= KINDS:
            time.sleep(0.05)
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    return said_in(log)


def said_in(log):
    """Its whole lines."""
    return [line.split(" ") for line in log.read_text().split("\n")[:-1]]


async def test_kill_at_any_moment_loses_nothing_that_was_acknowledged(open_store, folder):
    rng = random.Random(7)
    feedback, outcomes, written, version, taught = set(), set(), set(), 0, 0
    for number in range(ROUNDS):
        submitted, before = [], {}
        for kind, *words in live_and_die(folder, number, rng.uniform(0.05, 0.9)):
            if kind == "asks":
                before[words[0]] = len(submitted)
            elif kind == "feedback":
                feedback.add(words[0])
                # Whatever waits goes with the next commit: no clock says what is on the disk.
                written.update(submitted[: before[words[0]]])
            elif kind == "outcome":
                outcomes.add(words[0])
            elif kind == "adapter":
                version = int(words[0])
            elif kind == "taught":
                taught = int(words[0])
            elif kind == "trajectory":
                submitted.append(words[0])
        report = maintenance.verify(folder)
        assert report.ok, report.problems
        async with open_store() as store:
            kept = await store.feedback(limit=1 << 30)
            assert feedback <= {one.id for one in kept}
            waiting = {one.id for one in await store.pending_feedback()}
            assert not outcomes & waiting
            assert all(one.correction for one in await store.pending_feedback() if one.kind == "correction")
            assert written <= {one.request_id for one in await store.trajectories(limit=1 << 30)}
            served = (await store.current_versions()).get("m/t/*", 0)
            assert served >= version
            assert served == 0 or (await store.adapter("m/t/*", served)) is not None
            served = (await store.current_versions()).get("m/t/taught", 0)
            assert served >= taught, "what an outcome says is there"
            assert int(await store.get_blob("taught") or b"0") == served, "and what was counted with it"
            for one in await store.adapters("m/t/taught"):
                assert (one.weights.micro.lora_A == one.version).all()
                said = await store.outcome(one.feedback_ids[0])
                assert said is not None or one.version != served, "one that nobody serves may wait to be finished"
            blob = await store.get_blob("patterns") or b"\0"
            assert len(set(blob)) == 1
        report = maintenance.verify(folder)
        assert report.ok, report.problems
        assert report.orphans == ()
    assert feedback
    assert written
    assert version
