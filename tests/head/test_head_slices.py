"""Work that stops between slices, and what is refused before any."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from head_reference import capture, f32, finish, pair, rng

from sona_stream.errors import CaptureGone, HostError
from sona_stream.lora import LoraWeights, TokenSignal
from sona_stream_adapters.head import (
    BaseLogits,
    Batch,
    CapturedTokens,
    DenseHead,
    Job,
    SampledHead,
    Scratch,
    check_captures,
    check_signal,
    check_weights,
    gradient,
)
from sona_stream_adapters.head.weight_rows import WeightRows

D, V = 8, 30
W = torch.from_numpy(f32(rng(5).standard_normal((V, D))))
CAPTURES = [capture(10, 1, 1.0, D, V), capture(3, 2, 0.5, D, V)]
WEIGHTS = LoraWeights(pair(2, 1, dim=D))
SIGNAL = TokenSignal(WEIGHTS, [np.ones(len(c), np.float32) for c in CAPTURES])


def job(scratch, head=None, **options):
    source = BaseLogits(DenseHead(W) if head is None else head, max_bytes=0)
    signal = dataclasses.replace(SIGNAL, **options)
    return Job(gradient(source, Batch(CAPTURES, chunk=4), signal, scratch))


def test_no_slice_is_longer_than_a_chunk(monkeypatch):
    products = []
    plain = WeightRows.logits
    monkeypatch.setattr(WeightRows, "logits", lambda self, h: products.append(len(h)) or plain(self, h))
    one, slices = job(Scratch()), 0
    while not one.advance():
        slices += 1
        assert len(products) <= slices
    assert products == [4, 4, 2, 3]
    assert slices == 5


def test_jobs_take_turns_with_one_scratch():
    scratch = Scratch()
    jobs = [job(scratch, anchor=0.3), job(scratch, anchor=0.3, top_k=3), job(scratch, fisher=True)]
    while sum(one.advance() for one in jobs) < len(jobs):
        pass
    for one, options in zip(jobs, ({"anchor": 0.3}, {"anchor": 0.3, "top_k": 3}, {"fisher": True}), strict=True):
        assert one.done
        np.testing.assert_array_equal(one.result().micro_B, job(Scratch(), **options).run().micro_B)


def test_rows_that_take_long_come_in_slices():
    def rows(ids):
        out = torch.empty(len(ids), D)
        for at in range(D):
            out[:, at] = W[ids, at]
            yield
        return out

    quick, slow = (
        job(Scratch(), SampledHead(lambda h: h @ W.T, ask, hidden_dim=D, vocab_size=V, top_k=4))
        for ask in (lambda ids: W[ids], rows)
    )
    slices = 0
    while not slow.advance():
        slices += 1
    assert slices > D
    np.testing.assert_array_equal(slow.result().micro_B, quick.run().micro_B)


def test_a_job_that_fails_says_so_again():
    calls = []

    def rows(ids):
        calls.append(ids)
        return W[:1]

    head = SampledHead(lambda h: h @ W.T, rows, hidden_dim=D, vocab_size=V)
    one = job(Scratch(), head)
    with pytest.raises(RuntimeError, match="not done"):
        one.result()
    with pytest.raises(HostError, match="dequantised rows"):
        one.run()
    with pytest.raises(HostError, match="dequantised rows"):
        one.result()
    assert one.advance()
    assert len(calls) == 1


def test_a_job_that_is_given_up():
    one = job(Scratch())
    one.advance()
    one.close()
    assert one.done
    with pytest.raises(RuntimeError, match="given up"):
        one.result()


@pytest.mark.parametrize("logits", [torch.zeros(3, V), torch.zeros(10, V - 1), torch.zeros(10)])
def test_logits_of_another_shape_are_refused(logits):
    head = SampledHead(lambda h: logits, lambda ids: W[ids], hidden_dim=D, vocab_size=V)
    with pytest.raises(HostError, match="the model's logits"):
        head.logits(torch.zeros(10, D))


def test_tokens_outside_the_vocabulary():
    one = dataclasses.replace(CAPTURES[0], token_ids=np.full(10, V, np.int32))
    with pytest.raises(HostError, match="vocabulary of 30"):
        finish(gradient(BaseLogits(DenseHead(W), max_bytes=0), Batch([one]), SIGNAL, Scratch()))


def on_device(**changes):
    one = CAPTURES[0]
    made = CapturedTokens("x", *(torch.tensor(a) for a in (one.hidden, one.token_ids, one.logprobs)))
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("captures", "error", "message"),
    [
        ([], HostError, "at least one token"),
        ([on_device(hidden=torch.zeros(0, D))], CaptureGone, "'x' holds no hidden states"),
        ([on_device(hidden=torch.zeros(10, D + 1))], HostError, "hidden has shape"),
        ([on_device(logprobs=torch.zeros(9))], HostError, "logprobs has shape"),
        ([on_device(hidden=torch.full((10, D), torch.nan))], HostError, "finite"),
        ([on_device(temperature=-1.0)], HostError, "temperature"),
    ],
)
def test_captures_are_checked_wherever_they_live(captures, error, message):
    check_captures([on_device(), CAPTURES[0]], D)
    with pytest.raises(error, match=message):
        check_captures(captures, D)


def test_signals_and_weights_are_checked():
    check_signal(CAPTURES, SIGNAL)
    with pytest.raises(HostError, match="1 arrays for 2"):
        check_signal(CAPTURES, dataclasses.replace(SIGNAL, advantages=SIGNAL.advantages[:1]))
    with pytest.raises(HostError, match="rank 2 is outside 1"):
        check_weights(WEIGHTS, D, max_rank=1)
