"""The parts about streams and forgetting of `benchmarks/learning.py`, on a tiny head: arithmetic, not figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learning_parts import forgetting, plan, stream_memory, streams
from learning_parts.head_host import HeadHost
from learning_parts.segments import as_capture
from learning_parts.stream_memory import Match, Mixture, StreamMemory
from report import Report

from sona_stream.lora import HiddenSpace
from sona_stream_adapters.head import DenseHead

D, V, T = 24, 150, 32


def world(seed=0, domains=1, count=6, tokens=4):
    """States around a few centres; each domain has its own favourite tokens."""
    r = np.random.default_rng(seed)
    W = torch.from_numpy((r.standard_normal((V, D)) * 0.4).astype(np.float32))
    mean = r.standard_normal(D)
    out = {}
    for domain in range(domains):
        likes, centre = r.integers(0, V, tokens), mean + 0.5 * r.standard_normal(D)
        rows = [
            as_capture(
                f"d{domain}:{i}", "f", (centre + r.standard_normal((T, D))).astype(np.float32), r.choice(likes, T)
            )
            for i in range(count)
        ]
        out[f"d{domain}"] = rows
    return HeadHost(DenseHead(W), "f"), out


SPACE = HiddenSpace(np.zeros(D, np.float32), np.ones(D, np.float32), "test")


async def test_every_arm_predicts_the_first_segment_as_the_frozen_model_and_learns_from_it():
    host, domains = world()
    told = await streams.stream(host, domains["d0"], SPACE, 0)
    assert set(told) == {"frozen", *streams.ARMS}
    for arm in ("adam", "micro2", "base16"):
        assert told[arm][0] == pytest.approx(told["frozen"][0], rel=1e-5)
        assert np.mean(told[arm][3:]) > np.mean(told["frozen"][3:])
        assert streams.change(told, arm) < 0
    assert streams.change({"frozen": [-1.0], "x": [-0.5]}, "x") == pytest.approx(100 * (np.exp(-0.5) - 1))


def test_memory_draws_on_earlier_tokens_only_and_stays_a_distribution():
    """Every token that might have come is tried in turn: their probabilities must sum to one."""
    r = np.random.default_rng(1)
    hidden, labels = r.standard_normal((9, D)).astype(np.float32), r.integers(0, 3, 9)
    own = np.log(r.dirichlet(np.ones(4), 9)).astype(np.float32)  # over four tokens
    for t in range(9):
        told = []
        for token in range(4):
            memory = StreamMemory(SPACE)
            ids = np.append(labels[:t], token)
            segment = as_capture("a", "f", hidden[: t + 1], ids)
            told.append(memory.see(segment, own[np.arange(t + 1), ids])[t])
        total = np.exp(told).sum()
        assert total <= 1 + 1e-5
        if t > 0:  # until then no other expert says anything, and its share is lost
            assert total > 0.75


def test_memory_finds_what_was_said_before_and_forgets_beyond_its_capacity(monkeypatch):
    r = np.random.default_rng(1)
    hidden, labels = r.standard_normal((9, D)).astype(np.float32), r.integers(0, 50, 9)
    memory, own = StreamMemory(SPACE), np.full(9, -4.0, np.float32)
    first = memory.see(as_capture("a", "f", hidden, labels), own)
    again = memory.see(as_capture("b", "f", hidden, labels), own)
    assert again[1:].min() > max(-1.5, first[0])
    monkeypatch.setattr(stream_memory, "CAPACITY", 1)
    gone = StreamMemory(SPACE)
    gone.see(as_capture("a", "f", hidden, labels), own)
    assert len(gone._keys) == 1


@given(st.lists(st.integers(0, 3), max_size=60))
def test_a_match_is_one(tokens):
    match = Match()
    for i, token in enumerate(tokens):
        predicted, length = match.predict()
        if predicted >= 0:
            before = tuple(tokens[i - length : i])
            assert length >= Match.shortest
            assert any(
                tuple(tokens[at - length : at]) == before and tokens[at] == predicted for at in range(length, i)
            )
        else:
            assert tuple(tokens[i - 2 : i]) not in {tuple(tokens[k : k + 2]) for k in range(i - 2)}
        match.see(token)


def test_gates_learn_whom_to_trust():
    mixture, x = Mixture(3), np.eye(6)[0]
    told = [mixture.see(x, np.array([0.1, 0.9, 0.5])) for _ in range(200)]
    assert told[0] < 0.5
    assert told[-1] > 0.85


async def test_what_is_held_changes_less():
    """A head this small forgets and gains by turns: what is asked is how far it strays."""
    host, domains = world(3, domains=3, count=10, tokens=60)
    learned = {name: rows[:8] for name, rows in domains.items()}
    unseen = {name: rows[8:] for name, rows in domains.items()}
    strayed = []
    for name in ("ewc0", "ewc500", "ewc2000"):
        told = await forgetting.sequence(host, forgetting.ARMS[name], learned, unseen, 0)
        assert list(told["forgot"]) == list(told["learned"]) == list(domains)
        strayed.append(np.mean(np.abs(list(told["forgot"].values()))))
    assert strayed == sorted(strayed, reverse=True)


def row_of(id, *measured):
    """Of the arms (name, forgotten, learned), each of two seeds a little apart."""
    told = {
        name: [
            {"forgot": {"a": forgot, "b": forgot + more}, "learned": {"a": learned, "b": learned}}
            for more in (0, 0.1)
        ]
        for name, forgot, learned in measured
    }
    report = Report("test")
    forgetting.rows(report, told)
    return next(row for row in report.rows if row.id == f"forgetting.{id}")


NONE = ("none", 10.0, -8.0)
HELD = (("ewc0", 11.0, -8.0), ("ewc500", 1.0, -6.0), ("ewc2000", 0.5, -4.0))


def test_who_learns_less_must_also_forget_less_of_it():
    row = row_of("replay", NONE, ("replay", 1.0, -4.0))
    assert row.ok
    assert row.compared["per learned"] == pytest.approx(0.25, abs=0.02)
    assert row.compared["per learned, at most"] == pytest.approx(0.625, abs=0.02)
    cautious = row_of("replay", NONE, ("replay", 4.0, -4.0))
    assert cautious.value <= cautious.goal
    assert cautious.ok is False
    for learned in (0.0, 1.0):
        idle = row_of("replay", NONE, ("replay", 0.0, learned))
        assert idle.value <= idle.goal
        assert (idle.ok, idle.compared["per learned"]) == (False, None)
    assert row_of("none", NONE).compared == pytest.approx({"learned": -8.0, "per learned": 1.25}, abs=0.01)


def test_monotone_is_about_the_medians_of_the_three():
    assert (row_of("monotone", *HELD).value, row_of("monotone", *HELD).ok) == (1.0, True)
    turned = (HELD[0], ("ewc500", 0.4, -6.0), HELD[2])
    assert (row_of("monotone", *turned).value, row_of("monotone", *turned).ok) == (0.0, False)
    assert row_of("monotone", *HELD[:2]).ok is False


def test_without_data_the_goals_are_missed(monkeypatch):
    report = Report("test")
    for part in (streams, forgetting):
        part.add_rows(report, plan.Run())
    assert {row.value for row in report.rows} == {None}
    missed = {row.id for row in report.rows if row.ok is False}
    assert missed == {
        *(f"stream_ppl.{arm}.{domain}" for arm, domain in streams.GOALS),
        "forgetting.replay",
        "forgetting.monotone",
    }
    ids = {row.id for row in report.rows}
    assert ids == {
        *(f"stream_ppl.{arm}.{domain}" for arm in streams.ARMS for domain in (*streams.DOMAINS, "mean")),
        *(f"forgetting.{name}" for name in (*forgetting.ARMS, "monotone")),
    }
    assert "the product ships none" in next(
        row.compared["remark"] for row in report.rows if row.id == "stream_ppl.memory.mean"
    )


async def test_a_slow_pupil_learns_less():
    host, domains = world(3, domains=2, count=6, tokens=4)
    learned = {name: rows[:4] for name, rows in domains.items()}
    unseen = {name: rows[4:] for name, rows in domains.items()}
    none, slow = [
        (await forgetting.sequence(host, forgetting.ARMS[name], learned, unseen, 0))["learned"]["d0"]
        for name in ("none", "slow")
    ]
    assert none < slow < 0
