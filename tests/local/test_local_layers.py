"""Adapters on layers inside the model: what they compute, what they cost the others, how they learn."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import Answer, ask, collect, running

sys.path.append(str(Path(__file__).parents[1] / "learner"))  # the store in memory is the learner's tests' own

from toy import MemoryStore, Rates

from sona_stream.config.settings import LearningSettings, SonaSettings
from sona_stream.engine.learner import Learner
from sona_stream.engine.learner.gates import Limits, judge
from sona_stream.engine.learner.layers import layer_steps
from sona_stream.errors import ConfigError, HostError
from sona_stream.events import AdapterRef, Feedback, RouteDecision, Sampling, Trajectory
from sona_stream.lora import AdapterRecord, LoraGradient, LoraWeights, LowRank, TokenSignal
from sona_stream.protocols import LayeredHost
from sona_stream.store import SqliteStore

D = 48
KEY = "tiny/default/*"
REF = AdapterRef(key=KEY, version=1)
PROMPTS = ("the quick", "brown fox", "jumps over", "the lazy")


@pytest.fixture
async def layered(tiny_folder):
    async with running(tiny_folder, layers="all", layer_rank=2) as made:
        yield made


def pair(seed, rank=2, size=0.1, scaling=1.0):
    r = np.random.default_rng(seed)
    A, B = r.standard_normal((rank, D)) / np.sqrt(D), r.standard_normal((D, rank)) * size
    return LowRank(A.astype(np.float32), B.astype(np.float32), scaling)


def weights(seed=0, layers=(0, 2), size=0.1, base=False):
    return LoraWeights(
        pair(seed, size=size),
        pair(seed + 50, rank=3, size=size, scaling=0.5) if base else None,
        {layer: pair(seed + 100 + layer, size=size, scaling=1.5) for layer in layers},
    )


def idle(pair):
    return dataclasses.replace(pair, lora_B=np.zeros_like(pair.lora_B))


@contextlib.contextmanager
def hooked(decoder, layers):
    """The textbook: h + scaling B A h on the output of each named layer; `layers` hold tensors."""
    handles = []
    for index, (A, B, scaling) in layers.items():

        def hook(module, inputs, output, A=A, B=B, scaling=scaling):
            return output + scaling * (output @ A.T) @ B.T

        handles.append(decoder.layers[index].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(weights):
    """In double, ready for autograd: {"micro" | "base" | layer: (A, B, scaling)}"""
    named = {"micro": weights.micro, "base": weights.base, **weights.layers}
    return {
        name: (
            torch.tensor(one.lora_A.astype(np.float64), requires_grad=True),
            torch.tensor(one.lora_B.astype(np.float64), requires_grad=True),
            one.scaling,
        )
        for name, one in named.items()
        if one is not None
    }


def logits_of(model, prompt, answer, pairs):
    """(T, V) that `answer` is drawn from."""
    ids = torch.tensor([[*map(int, prompt), *map(int, answer)]])
    with hooked(model.model, {name: one for name, one in pairs.items() if isinstance(name, int)}):
        hidden = model.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
    final = hidden
    for name in ("micro", "base"):
        if name in pairs:
            A, B, scaling = pairs[name]
            final = final + scaling * (hidden @ A.T) @ B.T
    return final @ model.lm_head.weight.T


@pytest.fixture(scope="session")
def exact(reference):
    """The same model in double."""
    return copy.deepcopy(reference).double()


async def all_at_once(backend, requests):
    """All arrive before the torch thread looks: the same shapes in every run."""
    tasks = [asyncio.create_task(collect(backend, request)) for request in requests]
    with backend._engine.scheduler._wake:
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(backend._engine.scheduler._arrived) == len(requests)
    return await asyncio.gather(*tasks)


def sampled(prompt, id, adapter=None, **more):
    return ask(prompt, id=id, adapter=adapter, **{"max_tokens": 24, "temperature": 1.0, "seed": len(id), **more})


async def test_the_gradient_is_that_of_autograd_in_double_on_the_textbook_formula(layered, exact):
    host, w = layered.host, weights(3, base=True)
    await host.put_adapter(KEY, 1, weights(9))
    for i, temperature in enumerate((1.0, 0.7, 1.0)):
        request = ask(PROMPTS[i], id=f"r{i}", max_tokens=6 + 5 * i, temperature=temperature, seed=i, adapter=REF)
        await collect(layered, request)
    captures = [await host.capture(f"r{i}") for i in range(3)]
    memory = np.zeros(len(captures[2]), np.float32)
    memory[[1, 4]] = 0.8
    captures[2] = dataclasses.replace(captures[2], memory=memory)
    advantages = [np.full(len(c), a, np.float32) for c, a in zip(captures, (1.3, -0.8, 0.5), strict=True)]
    clip, anchor = (0.7, 1.3), 0.4
    found = await host.gradient(captures, TokenSignal(w, advantages, anchor=anchor, ratio_clip=clip))

    leaves, loss, kls = tensors(w), 0.0, []
    clipped = 0
    for c, a in zip(captures, advantages, strict=True):
        lp = torch.log_softmax(logits_of(exact, c.prompt_ids, c.token_ids, leaves) / c.temperature, 1)
        lp0 = torch.log_softmax(logits_of(exact, c.prompt_ids, c.token_ids, {}) / c.temperature, 1).detach()
        kl = (lp.exp() * (lp - lp0)).sum(1)
        label = lp[torch.arange(len(c)), torch.tensor(c.token_ids).long()]
        ratio = (label.detach() - torch.tensor(c.logprobs).double()).exp()
        held = ratio > clip[1] if a[0] > 0 else ratio < clip[0]
        clipped += int(held.sum())
        own = torch.ones(len(c)) if c.memory is None else torch.tensor(c.memory <= 0.5)
        loss = loss + (own * (anchor * kl - float(a[0]) * torch.where(held, 0.0, ratio) * label)).sum()
        kls.append(kl.detach())
    loss.backward()
    assert 0 < clipped < found.tokens
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    assert found.mean_kl_to_base == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    mine = {"micro": (found.micro_A, found.micro_B), "base": (found.base_A, found.base_B), **found.layers}
    assert set(mine) == set(leaves)
    for name, (A, B, _) in leaves.items():
        for got, leaf in zip(mine[name], (A, B), strict=True):
            expected = leaf.grad.numpy()
            assert np.abs(got - expected).max() <= 2e-4 * np.abs(expected).max(), name


async def test_measures_are_those_of_the_textbook_formula(layered, exact):
    host, old, new = layered.host, weights(1), weights(2, layers=(1,), base=True)
    captures = [await host.encode([5, 6, 7 + n], list(range(20, 26 + n)), request_id=str(n)) for n in range(3)]
    found, kl = await host.evaluate(captures, new), await host.predicted_kl(captures, old, new)
    kls, variances = [], []
    with torch.no_grad():
        for i, c in enumerate(captures):
            pairs = ({}, tensors(old), tensors(new))
            z0, z1, z2 = (logits_of(exact, c.prompt_ids, c.token_ids, one) for one in pairs)
            lp0, lp = torch.log_softmax(z0, 1), torch.log_softmax(z2, 1)
            kls.append((lp.exp() * (lp - lp0)).sum(1))
            labels = torch.tensor(c.token_ids).long()[:, None]
            np.testing.assert_allclose(found.logprobs[i], lp.gather(1, labels)[:, 0], atol=1e-3)
            np.testing.assert_allclose(found.base_logprobs[i], lp0.gather(1, labels)[:, 0], atol=1e-3)
            p, shift = torch.softmax(z1, 1), z2 - z1
            variances.append(0.5 * ((p * shift**2).sum(1) - (p * shift).sum(1) ** 2))
            same = await host.encode(c.prompt_ids, c.token_ids, weights=new)
            np.testing.assert_allclose(same.logprobs, found.logprobs[i], atol=1e-4)
            np.testing.assert_array_equal(same.hidden, c.hidden)  # of the unadapted model
    assert found.mean_kl_to_base == pytest.approx(float(torch.cat(kls).mean()), rel=1e-3)
    assert found.max_kl_to_base == pytest.approx(float(torch.cat(kls).max()), rel=1e-3)
    assert kl == pytest.approx(float(torch.cat(variances).mean()), rel=1e-3)
    assert found.mean_delta_ratio > 0
    assert found.repeat_mass is not None


async def test_pairs_at_birth_change_no_bit(layered):
    host = layered.host
    assert isinstance(host, LayeredHost)
    pairs = await host.initial_layers(KEY)
    assert sorted(pairs) == [0, 1, 2]
    assert all(one.lora_A.shape == (2, D) and one.lora_A.all() and not one.lora_B.any() for one in pairs.values())
    again = await host.initial_layers(KEY)
    assert all(np.array_equal(again[i].lora_A, one.lora_A) for i, one in pairs.items())
    plain = await collect(layered, sampled("the quick", "a"))
    await host.put_adapter(KEY, 1, LoraWeights(idle(pair(0)), layers=pairs))
    born = await collect(layered, sampled("the quick", "a", REF))
    assert born.head.adapter == REF
    assert born.ids() == plain.ids()
    assert born.logprobs() == plain.logprobs()


async def test_one_adapted_row_leaves_every_other_bit(layered, exact):
    def batch(adapter):
        requests = [sampled(p, f"r{i}", adapter if i == 2 else None, seed=i) for i, p in enumerate(PROMPTS)]
        return all_at_once(layered, requests)

    plain = await batch(None)
    await layered.host.put_adapter(KEY, 1, weights(base=True))
    adapted = await batch(REF)
    for row in (0, 1, 3):
        assert adapted[row].ids() == plain[row].ids()
        assert adapted[row].logprobs() == plain[row].logprobs()  # bit for bit
    answer = adapted[2]
    assert answer.logprobs() != plain[2].logprobs()
    assert logprobs_of(exact, answer, weights(base=True)) == pytest.approx(answer.logprobs(), abs=2e-3)
    capture = await layered.host.capture("r2")
    assert capture.adapter_versions.tolist() == [1] * 24
    with torch.no_grad():
        ids = torch.tensor([[*answer.head.prompt_ids, *answer.ids()]])
        hidden = exact.model(input_ids=ids).last_hidden_state[0, len(answer.head.prompt_ids) - 1 : -1]
    np.testing.assert_allclose(capture.hidden, hidden, atol=1e-3)  # of the unadapted model


def logprobs_of(exact, answer, weights):
    """Of an answer's tokens, read at once under one adapter and without any cache."""
    with torch.no_grad():
        pairs = {} if weights is None else tensors(weights)
        lp = torch.log_softmax(logits_of(exact, answer.head.prompt_ids, answer.ids(), pairs), 1)
    return lp.gather(1, torch.tensor(answer.ids())[:, None])[:, 0].tolist()


async def test_keys_and_values_are_of_one_version_and_shared_with_nobody(layered, exact):
    """The same prompt at the same time under two adapters, under none, and twice under one."""
    host, other = layered.host, AdapterRef(key="tiny/other/*", version=1)
    one, two = weights(1), weights(2, layers=(1,))
    await host.put_adapter(KEY, 1, one)
    await host.put_adapter(other.key, 1, two)
    refs = (REF, other, None)
    answers = await all_at_once(layered, [sampled("the quick", f"r{i}", ref) for i, ref in enumerate(refs)])
    for answer, own in zip(answers, (one, two, None), strict=True):
        assert logprobs_of(exact, answer, own) == pytest.approx(answer.logprobs(), abs=2e-3)
    choices = await collect(layered, sampled("the quick", "n", REF, n=2))
    for index in range(2):
        ids = torch.tensor(choices.ids(index))
        with torch.no_grad():
            lp = torch.log_softmax(logits_of(exact, choices.head.prompt_ids, ids, tensors(one)), 1)
        assert lp.gather(1, ids[:, None])[:, 0].tolist() == pytest.approx(choices.logprobs(index), abs=2e-3)


async def test_an_answer_keeps_the_version_it_began_with(layered, exact):
    """For its keys and values are of that version: a swap takes effect with the next answer, a drop too."""
    host = layered.host
    await host.put_adapter(KEY, 1, weights(1))

    async def interrupted(id, change):
        events = []
        async with layered(sampled("the quick", id, REF, max_tokens=40)) as stream:
            async for event in stream:
                events.append(event)
                if len(events) == 4:
                    await change
        return Answer(events)

    swapped = await interrupted("swap", host.put_adapter(KEY, 2, weights(2)))
    assert (await host.capture("swap")).adapter_versions.tolist() == [1] * 40
    assert logprobs_of(exact, swapped, weights(1)) == pytest.approx(swapped.logprobs(), abs=2e-3)
    following = await collect(layered, sampled("the quick", "next", REF))
    assert following.head.adapter == dataclasses.replace(REF, version=2)
    assert logprobs_of(exact, following, weights(2)) == pytest.approx(following.logprobs(), abs=2e-3)
    dropped = await interrupted("drop", host.drop_adapter(KEY))
    assert logprobs_of(exact, dropped, weights(2)) == pytest.approx(dropped.logprobs(), abs=2e-3)


async def test_a_step_too_large_does_not_pass_the_gates(layered):
    host = layered.host
    captures = [await host.encode([5, 6, 7 + n], list(range(20, 30 + n)), request_id=str(n)) for n in range(4)]
    limits = Limits.of(LearningSettings())
    verdicts = {}
    for size in (1e-4, 0.2, 3.0):
        w = dataclasses.replace(weights(size=size), micro=idle(pair(0)))
        verdicts[size] = judge(w, await host.evaluate(captures, w), [True] * 4, limits)
    assert verdicts[1e-4].ok
    assert verdicts[0.2].gate in ("kl_to_base", "delta_ratio")
    assert not verdicts[3.0].ok
    broken = weights()
    broken.layers[0].lora_B[0, 0] = np.nan
    assert judge(broken, await host.evaluate(captures, broken), [True] * 4, limits).gate == "finite"
    with pytest.raises(HostError, match=r"layers\[0\]: every entry"):
        await host.put_adapter(KEY, 1, broken)


class Classroom:
    """A learner over the running model."""

    def __init__(self, backend, store=None, **settings):
        self.backend, self.store = backend, store or MemoryStore()
        settings = LearningSettings(replay_every=10_000, **settings)
        self.learner = Learner({"tiny": backend.host}, self.store, Rates(micro_lora_lr=2e-3), settings)

    async def teach(self, id, quality, **feedback):
        answer = await collect(self.backend, sampled(PROMPTS[len(id) % 4], id, self.ref, max_tokens=12))
        self.store.trajectories[id] = Trajectory(
            request_id=id, tenant="default", key_id="k", model="tiny", adapter=self.ref,
            route=RouteDecision(model="tiny", reason="test"), sampling=Sampling(temperature=1.0),
            prompt_ids=answer.head.prompt_ids, token_ids=tuple(answer.ids()),
        )  # fmt: skip
        told = Feedback(
            id=f"f-{id}", request_id=id, tenant="default", key_id="k", quality=quality,
            **{"kind": "rating", **feedback},
        )  # fmt: skip
        self.store.feedbacks[told.id] = told
        return await self.learner.learn(told, wait=True)

    @property
    def ref(self):
        served = self.learner.stats()["served"].get(KEY)
        return None if served is None else AdapterRef(key=KEY, version=served)

    @property
    def newest(self):
        return self.store.records[KEY, self.ref.version]


async def test_feedback_teaches_layers_and_their_versions_come_back(layered, tiny_folder):
    room = Classroom(layered)
    plain = await collect(layered, sampled("the quick", "p"))
    async with room.learner as learner:
        outcome = await room.teach("a", 1.0)
        assert outcome.status == "published", outcome
        first = room.newest
        assert sorted(first.weights.layers) == [0, 1, 2]
        assert all(one.lora_B[:, 0].any() for one in first.weights.layers.values())
        await room.teach("bb", 0.0)
        corrected = await room.teach("ccc", None, kind="correction", correction="brown dog")
        assert corrected.status == "published", corrected
        said = await learner.force_learn()
        assert "1 replays, 1 consolidations" in said, said
        last = room.newest
        assert last.weights.base is not None
        moved = [(last.weights.layers[i].lora_B, first.weights.layers[i].lora_B) for i in range(3)]
        assert not any(np.array_equal(*each) for each in moved)
        taught = await collect(layered, sampled("the quick", "p", room.ref))
        assert taught.logprobs() != plain.logprobs()
        shown = await learner.adapter(KEY, last.version)
        assert shown["layers"] == [0, 1, 2]
    async with running(tiny_folder, layers=[1]) as fresh:
        again = Classroom(fresh, room.store)
        async with again.learner as learner:
            assert again.ref.version == last.version
            assert (await collect(fresh, sampled("the quick", "p", again.ref))).logprobs() == taught.logprobs()
            await learner.rollback(KEY, first.version)
            assert fresh._engine.adapters.current(again.ref).version == first.version
            await learner.rollback(KEY, 0)
            assert again.ref is None
            assert (await collect(fresh, sampled("the quick", "p"))).logprobs() == plain.logprobs()


async def test_the_gate_holds_a_lesson_back_and_the_served_version_stays(layered):
    room = Classroom(layered, max_kl_to_base=1e-9)
    async with room.learner as learner:
        outcome = await room.teach("a", 1.0)
        assert (outcome.status, room.ref) == ("gated", None), outcome
        assert "mean_kl_to_base" in outcome.reason
        assert learner.stats()["counters"]["gated_kl_to_base"] >= 1


async def test_kept_on_disk_bit_for_bit(tmp_path):
    record = AdapterRecord(key=KEY, version=1, parent=None, fingerprint="f", weights=weights(base=True))
    async with SqliteStore(SonaSettings(), directory=tmp_path) as store:
        await store.put_adapter(record)
    async with SqliteStore(SonaSettings(), directory=tmp_path) as store:
        found = await store.adapter(KEY, 1)
    assert found.weights.nbytes == record.weights.nbytes
    for mine, theirs in zip(found.weights.pairs, record.weights.pairs, strict=True):
        assert np.array_equal(mine.lora_A, theirs.lora_A)
        assert np.array_equal(mine.lora_B, theirs.lora_B)
        assert mine.scaling == theirs.scaling
    assert list(found.weights.layers) == [0, 2]


def test_steps_of_layers_are_bounded_and_free_only_as_far_as_evidence_goes():
    r = np.random.default_rng(0)
    grads = {
        layer: tuple(r.standard_normal(shape).astype("f4") for shape in ((2, D), (D, 2))) for layer in range(4)
    }
    zero = np.zeros((2, D), "f4")
    gradient = LoraGradient(zero, zero.T, None, None, 10, 0.0, 0.0, 0.0, layers=grads)

    def unit(g, moments, prefix):
        return np.sign(g), {**moments, prefix: g}

    steps, moments = layer_steps(gradient, {}, unit, rate=0.01, freedom=0.0)
    assert len(moments) == 8
    for A, B in steps.values():
        assert not A.any()
        assert not B[:, 1].any()
        np.testing.assert_allclose(np.abs(B[:, 0]), 0.005)  # the rate over the root of four layers
    freed, _ = layer_steps(gradient, {}, unit, rate=0.01, freedom=1.0)
    assert all(A.all() and B.all() for A, B in freed.values())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": "some"}, r"'all' or a list of different layer numbers from 0 on.*'some'"),
        ({"layers": []}, r"litellm_params.layers must be"),
        ({"layers": [0, 0]}, r"litellm_params.layers must be"),
        ({"layers": [-1]}, r"litellm_params.layers must be"),
        ({"layers": [True]}, r"litellm_params.layers must be"),
        ({"layers": [0, 3]}, r"litellm_params.layers: 3 is outside 0..2"),
        ({"layers": "all", "layer_rank": 0}, r"litellm_params.layer_rank must be a whole number in 1..256"),
        ({"layers": "all", "layer_rank": 49}, r"litellm_params.layer_rank must be at most 48"),
    ],
)
async def test_settings_name_the_field_and_the_limit(tiny_folder, params, message):
    with pytest.raises(ConfigError, match=message):
        async with running(tiny_folder, **params):
            pass


async def test_hosts_that_adapt_no_layers_refuse_them(backend, layered):
    from sona_stream_adapters.vllm_plugin.codec import weights_parts

    capture = await backend.host.encode([5, 6], [7, 8, 9])
    for call in (
        backend.host.put_adapter(KEY, 1, weights()),
        backend.host.evaluate([capture], weights()),
        backend.host.gradient([capture], TokenSignal(weights(), [np.ones(4, np.float32)])),
    ):
        with pytest.raises(HostError, match="layers: the adapter changes layer 0, and this host adapts the final"):
            await call
    assert await backend.host.initial_layers(KEY) == {}
    with pytest.raises(HostError, match=r"layer 3, and the model's are 0\.\.2"):
        await layered.host.put_adapter(KEY, 1, weights(layers=(3,)))
    with pytest.raises(HostError, match="only a local model"):
        weights_parts(weights())
