"""The parts about streams and forgetting of `benchmarks/learning.py`, on a tiny head: arithmetic, not figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning_parts import forgetting, streams
from learning_parts.head_host import HeadHost
from learning_parts.segments import as_capture
from learning_parts.stream_memory import StreamMemory

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


def test_memory_is_the_formula_over_earlier_tokens_only():
    r = np.random.default_rng(1)
    hidden, labels = r.standard_normal((9, D)).astype(np.float32), r.integers(0, 3, 9)
    memory = StreamMemory(SPACE, capacity=7, neighbours=2, threshold=0.2)
    logprobs = np.full(9, -2.0, np.float32)
    found = memory.see(as_capture("a", "f", hidden, labels), logprobs)
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    assert found[0] == pytest.approx(-2.0)
    for t in range(1, 9):
        s = unit[:t] @ unit[t]
        top = np.argsort(-s)[:2]
        w = np.exp(20 * s[top]) / np.exp(20 * s[top]).sum()
        share = 0.5 / (1 + np.exp(-8 * (s.max() - 0.2)))
        p = (1 - share) * np.exp(-2.0) + share * w[labels[top] == labels[t]].sum()
        assert found[t] == pytest.approx(np.log(p), rel=1e-4)
    again = memory.see(as_capture("b", "f", hidden[-1:], labels[-1:]), logprobs[:1])
    assert again[0] > -1.0, "it was said before"
    gone = StreamMemory(SPACE, capacity=1, threshold=0.2)
    gone.see(as_capture("a", "f", hidden, labels), logprobs)
    assert len(gone._keys) == 1


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
