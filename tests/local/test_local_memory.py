"""Remembered answers in the decoding batch."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest
import torch
from tiny_model import VOCAB, ask, collect, running

from sona_stream.errors import HostError
from sona_stream.events import AdapterRef, EpisodeRef
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream_adapters.text import reference_ids

D = 48
ANSWER = [200, 201, 17, 202, 203, 17, 204, 0]


def recalling(request, *refs):
    named = tuple(EpisodeRef(key=key, gate=gate) for key, gate in refs)
    return dataclasses.replace(request, episodes=named)


async def remember(backend, key, request, answer=ANSWER):
    """Puts `answer` to the request's prompt, as a correction would; returns its capture."""
    prompt = (await collect(backend, dataclasses.replace(request, id="asked"))).head.prompt_ids
    capture = await backend.host.encode(list(prompt), answer)
    await backend.host.put_episode(key, capture.hidden, capture.token_ids, await backend.host.hidden_space())
    return capture


async def together(backend, requests):
    """All arrive at once: the same shapes in every run."""
    tasks = [asyncio.create_task(collect(backend, request)) for request in requests]
    with backend._engine.scheduler._wake:
        for _ in range(20):
            await asyncio.sleep(0)
    return await asyncio.gather(*tasks)


def mixture(logits, hidden, episode, space, said, gate=1.0, share=0.998, threshold=0.3):
    """(p (V,), memory's part of it (V,)): the formula in float64. `episode`: a capture; `said`: tokens so far."""
    unit = [(x.astype(np.float64) - space.mean) / space.spread for x in (*episode.hidden, hidden)]
    unit = [x / np.linalg.norm(x) for x in unit]
    s = np.array([gate * (x @ unit[-1]) for x in unit[:-1]])
    for i in range(len(s)):
        before, last = [-1] * 4 + episode.token_ids[:i].tolist(), [-1] * 4 + said
        s[i] += gate * next((k for k in range(4) if before[-1 - k] != last[-1 - k]), 4) / 20
    w = np.exp(60 * (s - s.max()))
    memory = np.zeros(VOCAB)
    np.add.at(memory, episode.token_ids, w / w.sum())
    amount = share / (1 + np.exp(-25 * (s.max() - threshold)))
    p = (1 - amount) * torch.softmax(logits.double(), 0).numpy() + amount * memory
    return p, amount * memory / p


async def test_a_corrected_answer_is_given_and_ends(backend):
    plain = await collect(backend, ask(max_tokens=12))
    await remember(backend, "e", ask())
    answer = await collect(backend, recalling(ask(max_tokens=12), ("e", 1.0)))
    assert answer.ids() == ANSWER
    assert answer.finish.reason == "stop"
    capture = await backend.host.capture("r")
    assert capture.memory.shape == (len(ANSWER),)
    assert capture.memory.min() > 0.5
    again = await collect(backend, ask(max_tokens=12))
    assert (again.ids(), again.logprobs()) == (plain.ids(), plain.logprobs())
    assert (await backend.host.capture("r")).memory is None


async def test_other_rows_keep_every_bit(backend):
    await remember(backend, "e", ask("the lazy dog"))
    prompts = ["the quick", "brown fox", "the lazy dog", "jumps over"]
    plain = [ask(p, id=f"r{i}", temperature=1.0, seed=i, max_tokens=16) for i, p in enumerate(prompts)]
    before = await together(backend, plain)
    for named in ([("none", 1.0)], [("e", 0.9), ("none", 1.0)], [("e", 1.0)]):
        mixed = await together(backend, [recalling(r, *named) if i == 2 else r for i, r in enumerate(plain)])
        for i in (0, 1, 3):
            assert (mixed[i].ids(), mixed[i].logprobs()) == (before[i].ids(), before[i].logprobs())
            captures = await backend.host.capture(f"r{i}")
            assert captures.memory is None
        same = (mixed[2].ids(), mixed[2].logprobs()) == (before[2].ids(), before[2].logprobs())
        assert same == (named == [("none", 1.0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("adapted", [False, True])
async def test_what_is_told_and_kept_is_the_mixtures(backend, reference, temperature, adapted):
    """The states compared are the unadapted ones, the model's part is the adapted one, temperature comes last."""
    episode = await remember(backend, "e", ask())
    r = np.random.default_rng(3)
    A, B = (r.standard_normal(shape).astype(np.float32) * 0.3 for shape in ((2, D), (D, 2)))
    await backend.host.put_adapter("k", 1, LoraWeights(LowRank(A, B)))
    ref = AdapterRef(key="k", version=1) if adapted else None
    asked = ask(max_tokens=10, temperature=temperature, seed=4, adapter=ref, logprobs=2)
    answer = await collect(backend, recalling(asked, ("e", 0.7)))
    capture, space = await backend.host.capture("r"), await backend.host.hidden_space()
    ids = list(answer.head.prompt_ids)
    for t, piece in enumerate(answer.pieces):
        with torch.no_grad():
            out = reference(input_ids=torch.tensor([ids]), output_hidden_states=True)
        h = out.hidden_states[-1][0, -1]
        moved = h + torch.from_numpy(B) @ (torch.from_numpy(A) @ h) if adapted else h
        p, part = mixture(reference.lm_head(moved).detach(), h.numpy(), episode, space, answer.ids()[:t], gate=0.7)
        label = piece.token_ids[0]
        assert piece.logprobs[0] == pytest.approx(np.log(p[label]), abs=2e-2)
        assert max(piece.top_logprobs[0].values()) == pytest.approx(np.log(p.max()), abs=2e-2)
        scaled = np.log(p) / (temperature or 1.0)
        assert capture.logprobs[t] == pytest.approx(scaled[label] - np.logaddexp.reduce(scaled), abs=4e-2)
        assert capture.memory[t] == pytest.approx(part[label], abs=2e-2)
        np.testing.assert_allclose(capture.hidden[t], h.numpy(), atol=1e-3)
        ids.append(label)


async def test_every_choice_and_a_long_prompt(backend):
    long = ask("the quick brown fox jumps " * 60, max_tokens=12)
    capture = await remember(backend, "long", long)
    assert len(capture.prompt_ids) > 256  # read in more than one pass
    request = recalling(dataclasses.replace(long, sampling=dataclasses.replace(long.sampling, n=3)), ("long", 1.0))
    answer = await collect(backend, request)
    assert [answer.ids(i) for i in range(3)] == [ANSWER] * 3
    for name in ("r", "r:1", "r:2"):
        assert (await backend.host.capture(name)).memory.min() > 0.5


async def test_episodes_come_and_go_between_tokens(backend):
    host = backend.host
    await remember(backend, "e", ask(), [5] * 60)
    assert host.holds_episode("e")
    await host.drop_episode("e")
    await host.drop_episode("e")
    assert not host.holds_episode("e")
    plain = await collect(backend, ask(max_tokens=40))
    assert (await collect(backend, recalling(ask(max_tokens=40), ("e", 1.0)))).ids() == plain.ids()

    capture = await remember(backend, "e", ask(), [5] * 60)
    ids = []
    async with backend(recalling(ask(max_tokens=120), ("e", 1.0))) as events:
        async for event in events:
            for piece in getattr(event, "pieces", ()):
                ids += piece.token_ids
            if len(ids) >= 4:  # a busy machine gives several at once
                await host.drop_episode("e")
    kept = (await host.capture("r")).memory
    assert ids[:4] == [5] * 4
    assert kept[:4].min() > 0.5
    assert kept[-1] == 0
    await host.put_episode("e", capture.hidden, capture.token_ids, await host.hidden_space())
    assert (await collect(backend, recalling(ask(max_tokens=4), ("e", 1.0)))).ids() == [5] * 4


async def test_an_answer_goes_on_as_it_began_though_its_episode_had_to_make_room(tiny_folder):
    async with running(tiny_folder, episode_mb=1) as backend:
        host = backend.host
        await remember(backend, "e", ask(), [5] * 120)
        space, ids = await host.hidden_space(), []
        tokens = (1 << 20) // (2 * D + 8)
        large = np.ones((tokens, D), np.float32), np.full(tokens, 9, np.int32)
        async with backend(recalling(ask(max_tokens=120), ("e", 1.0))) as events:
            async for event in events:
                for piece in getattr(event, "pieces", ()):
                    ids += piece.token_ids
                if len(ids) >= 4 and host.holds_episode("e"):
                    made = len(ids)
                    await host.put_episode("large", *large, space)
        assert made < 120
        assert not host.holds_episode("e")
        assert ids == [5] * 120
        assert (await host.capture("r")).memory.min() > 0.5
        assert (await collect(backend, recalling(ask(max_tokens=4), ("e", 1.0)))).ids() != [5] * 4
        assert backend._engine.episodes.held_bytes == 0


async def test_who_leaves_is_gone_whatever_they_remember(backend):
    await remember(backend, "e", ask())
    async with backend(recalling(ask(max_tokens=400), ("e", 0.2))) as events:
        async for event in events:
            if getattr(event, "pieces", ()):
                break
    for _ in range(400):
        if not backend._engine.scheduler.streaming:
            break
        await asyncio.sleep(0.005)
    assert backend._engine.scheduler._batch.rows == 0
    assert backend._engine.episodes.held_bytes == 0


async def test_the_space_is_that_of_the_reference_text(backend, reference, tiny):
    space = await backend.host.hidden_space()
    lead, rest = reference_ids(tiny.tokenizer, tiny.context)
    with torch.no_grad():
        out = reference(input_ids=torch.tensor([lead + rest]), output_hidden_states=True)
    states = out.hidden_states[-1][0, len(lead) - 1 : -1].double().numpy()
    np.testing.assert_allclose(space.mean, states.mean(0), atol=1e-4)
    np.testing.assert_allclose(space.spread, states.std(0), rtol=1e-3)
    assert space.version == f"reference-1:{len(rest)}"
    assert await backend.host.hidden_space() is space


async def test_limits_are_named(tiny_folder):
    async with running(tiny_folder, episode_mb=1) as backend:
        space = await backend.host.hidden_space()
        with pytest.raises(HostError, match="episode_mb allows 1048576"):
            await backend.host.put_episode("e", np.ones((11000, D), np.float32), np.ones(11000, np.int32), space)
        with pytest.raises(HostError, match="token_ids below 320"):
            await backend.host.put_episode("e", np.ones((2, D), np.float32), np.full(2, 320, np.int32), space)


async def test_what_memory_decided_gives_no_gradient(backend, reference):
    """Against autograd in double with those tokens left out of the loss, the anchor's part included."""
    await remember(backend, "e", ask(), [200, 201, 17])
    await collect(backend, recalling(ask(max_tokens=12, temperature=1.0, seed=2), ("e", 1.0)))
    capture = await backend.host.capture("r")
    own = torch.from_numpy(capture.memory <= 0.5)
    assert 0 < int(own.sum()) < len(capture)
    r = np.random.default_rng(0)
    A, B = (r.standard_normal(shape).astype(np.float32) * 0.2 for shape in ((2, D), (D, 2)))
    advantage = r.standard_normal(len(capture)).astype(np.float32)
    signal = TokenSignal(LoraWeights(LowRank(A, B)), [advantage], anchor=0.4)
    found = await backend.host.gradient([capture], signal)
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (A, B))
    W, h = reference.lm_head.weight.detach().double(), torch.from_numpy(capture.hidden).double()
    logp = torch.log_softmax((h + (h @ a.T) @ b.T) @ W.T, 1)
    logp0 = torch.log_softmax(h @ W.T, 1)
    chosen = logp.gather(1, torch.from_numpy(capture.token_ids).long()[:, None])[:, 0]
    kl = (logp.exp() * (logp - logp0)).sum(1)
    loss = (0.4 * kl - torch.from_numpy(advantage).double() * chosen)[own].sum()
    loss.backward()
    for ours, theirs in ((found.micro_A, a.grad.numpy()), (found.micro_B, b.grad.numpy())):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-4)
