"""The backend as the pipeline sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest
import torch
from tiny_model import VOCAB, Answer, ask, collect, running

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import ConfigError, InvalidRequest, ModelUnavailable, NotReady, UpstreamProtocolError
from sona_stream.events import Delta
from sona_stream.protocols import Backend
from sona_stream_adapters.local import create_backend


def greedy(reference, ids, n):
    """Transformers' own greedy decoding, without a cache."""
    ids, out = list(ids), []
    for _ in range(n):
        with torch.no_grad():
            out.append(int(reference(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        ids.append(out[-1])
    return out


async def rows(backend):
    """Rows in the batch, once the torch thread has had time to notice."""
    for _ in range(200):
        if not backend._engine.scheduler.streaming:
            return 0
        await asyncio.sleep(0.005)
    return backend._engine.scheduler._batch.rows


async def test_it_is_a_backend(backend):
    assert isinstance(backend, Backend)
    assert backend.adaptable


async def test_an_answer(backend, reference, tiny):
    answer = await collect(backend, ask(max_tokens=12))
    prompt = tiny.tokenizer("the quick brown")["input_ids"]
    assert answer.ids() == greedy(reference, prompt, 12)
    assert answer.head.prompt_ids == tuple(prompt)
    assert answer.head.model == "tiny"
    assert answer.head.adapter is None
    assert answer.text() == tiny.tokenizer.decode(answer.ids())
    assert answer.finish.reason == answer.pieces[-1].finish_reason == "length"
    assert (answer.finish.usage.prompt_tokens, answer.finish.usage.completion_tokens) == (len(prompt), 12)
    assert answer.finish.completion_id == "cmpl-r"
    assert all(value <= 0 for value in answer.logprobs())


async def test_chat_goes_through_the_template(backend, tiny):
    answer = await collect(backend, ask("hello", endpoint="chat.completions"))
    assert tiny.tokenizer.decode(answer.head.prompt_ids) == "user: hello\nassistant: "
    parts = dataclasses.replace(
        ask("", endpoint="chat.completions"),
        messages=({"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},),
    )
    assert (await collect(backend, parts)).head.prompt_ids == answer.head.prompt_ids
    assert answer.finish.completion_id == "chatcmpl-r"


async def test_many_at_once_answer_as_each_alone(backend):
    prompts = ["the", "quick brown fox jumps over", "lazy dog: " * 9, "naïve ↔ 漢字"]
    alone = [(await collect(backend, ask(p, max_tokens=20, temperature=1.0, seed=5))).ids() for p in prompts]
    together = await asyncio.gather(
        *[
            collect(backend, ask(p, id=f"r{i}", max_tokens=20, temperature=1.0, seed=5))
            for i, p in enumerate(prompts)
        ]
    )
    assert [answer.ids() for answer in together] == alone


async def test_more_than_fit_wait_their_turn(tiny_folder):
    async with running(tiny_folder, max_batch=2) as backend:
        answers = await asyncio.gather(*[collect(backend, ask(id=f"r{i}")) for i in range(7)])
        assert {tuple(answer.ids()) for answer in answers} == {tuple(answers[0].ids())}


async def test_requests_that_do_not_fit_the_caches_memory_wait(tiny_folder):
    async with running(tiny_folder, kv_cache_mb=1) as backend:  # 1 MB: 2,730 positions of all rows together
        answers = await asyncio.gather(
            *[collect(backend, ask("the " * 40, id=f"r{i}", max_tokens=200)) for i in range(13)]
        )
        assert all(answer.finish.usage.completion_tokens == 200 for answer in answers)


async def test_choices_share_a_prompt_and_have_streams_of_their_own(backend):
    request = ask(n=3, temperature=1.0, seed=3, max_tokens=10)
    answer = await collect(backend, request)
    texts = [answer.ids(index) for index in range(3)]
    assert len({tuple(ids) for ids in texts}) == 3
    assert answer.finish.usage.completion_tokens == 30
    assert [[p.finish_reason for p in answer.of(i)][-1] for i in range(3)] == ["length"] * 3
    again = await collect(backend, request)
    assert [again.ids(index) for index in range(3)] == texts
    assert (await collect(backend, ask(temperature=1.0, seed=4, max_tokens=10))).ids() != texts[0]
    assert len(await backend.host.capture("r")) == 10
    assert len(await backend.host.capture("r:2")) == 10


async def test_stop_strings_and_the_end_token(backend):
    free = (await collect(backend, ask(max_tokens=30))).text()
    stop = free[5:8]
    answer = await collect(backend, ask(max_tokens=30, stop=(stop,)))
    assert answer.text() == free[: free.find(stop)]
    assert answer.finish.reason == "stop"
    engine = backend._engine
    third = (await collect(backend, ask(max_tokens=30))).ids()[2]
    before, engine.model.eos_ids = engine.model.eos_ids, frozenset({third})
    try:
        answer = await collect(backend, ask(max_tokens=30))
    finally:
        engine.model.eos_ids = before
    assert answer.ids()[-1] == third
    assert answer.ids().count(third) == 1
    assert answer.finish.reason == "stop"


async def test_logprobs(backend, reference):
    answer = await collect(backend, ask(max_tokens=4, temperature=0.7, seed=1, logprobs=3))
    ids = list(answer.head.prompt_ids)
    for piece in answer.pieces:
        with torch.no_grad():
            expected = torch.log_softmax(reference(input_ids=torch.tensor([ids])).logits[0, -1], 0)
        assert piece.logprobs[0] == pytest.approx(float(expected[piece.token_ids[0]]), abs=1e-3)
        assert sorted(piece.top_logprobs[0].values(), reverse=True) == pytest.approx(
            expected.topk(3).values.tolist(), abs=1e-3
        )
        ids += piece.token_ids


@pytest.mark.parametrize("leave_after", [0, 1, 3])
async def test_leaving_frees_the_rows_within_one_token(backend, leave_after):
    seen = 0
    async with backend(ask(max_tokens=400)) as events:
        async for event in events:
            seen += isinstance(event, Delta)
            if seen >= leave_after:
                break
    assert await rows(backend) == 0
    made = 0
    if leave_after:
        made = len(await backend.host.capture("r"))
    assert made < 300


async def test_a_cancelled_task_frees_the_rows(backend):
    task = asyncio.create_task(collect(backend, ask(max_tokens=400)))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rows(backend) == 0


async def test_cancelling_while_waiting_and_while_prefilling(tiny_folder):
    async with running(tiny_folder, max_batch=1) as backend:
        tasks = [
            asyncio.create_task(collect(backend, ask("the " * 100, id=f"r{i}", max_tokens=60))) for i in range(4)
        ]
        await asyncio.sleep(0.01)
        for task in tasks[1:]:
            task.cancel()
        first = await tasks[0]
        assert first.finish.usage.completion_tokens == 60
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await rows(backend) == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": (1, VOCAB)}, "prompt"),
        ({"prompt": "the " * 600}, "prompt"),
        ({"constrained": True}, "tools"),
    ],
)
async def test_bad_requests_are_refused_before_the_head(backend, change, param):
    with pytest.raises(InvalidRequest) as error:
        await collect(backend, dataclasses.replace(ask(), **change))
    assert error.value.param == param


@pytest.mark.parametrize(
    "sampling",
    [{"n": 17}, {"n": 0}, {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 1.5}],
)
async def test_bad_sampling_is_refused(backend, sampling):
    with pytest.raises(InvalidRequest) as error:
        await collect(backend, ask(**sampling))
    assert error.value.param == next(iter(sampling))


async def test_pictures_are_refused(backend):
    content = [{"type": "image_url", "image_url": {"url": "data:"}}]
    request = dataclasses.replace(
        ask("x", endpoint="chat.completions"), messages=({"role": "user", "content": content},)
    )
    with pytest.raises(InvalidRequest, match="text only"):
        await collect(backend, request)


async def test_an_answer_never_outgrows_the_context(backend):
    answer = await collect(backend, ask(tuple_prompt(500), max_tokens=1000))
    assert answer.finish.usage.total_tokens == 512
    assert answer.finish.reason == "length"


def tuple_prompt(n):
    return tuple(1 + i % 200 for i in range(n))


async def test_embeddings_are_not_offered(backend):
    with pytest.raises(InvalidRequest, match="embedding model"):
        await backend.embeddings(b"{}")


async def test_before_it_is_loaded(tiny_folder):
    backend = create_backend(
        Deployment(model_name="tiny", provider="local", upstream_model=str(tiny_folder)), SonaSettings()
    )
    assert backend.host is None
    async with backend:
        with pytest.raises(NotReady, match=r"tiny: "):
            await backend.probe()
        with pytest.raises(NotReady):
            await collect(backend, ask())
    assert backend.host is None
    with pytest.raises(NotReady, match="stopped"):
        await backend.probe()


async def test_a_model_that_cannot_be_had(tmp_path):
    backend = create_backend(
        Deployment(model_name="x", provider="local", upstream_model=str(tmp_path / "missing")), SonaSettings()
    )
    async with backend:
        await asyncio.to_thread(backend._loader.join)
        with pytest.raises(ModelUnavailable, match="neither"):
            await backend.probe()


async def test_streams_end_with_an_error_when_the_backend_stops(tiny_folder):
    async with running(tiny_folder) as backend:
        task = asyncio.create_task(collect(backend, ask(max_tokens=500)))
        await asyncio.sleep(0.02)
    with pytest.raises(NotReady, match="shutting down"):
        await task


async def test_a_failed_step_fails_its_streams_and_nothing_else(backend, monkeypatch):
    model, real = backend._engine.model, type(backend._engine.model).step
    failing = True

    def step(self, ids, cache, adapters=()):
        if failing:
            raise RuntimeError("out of memory")
        return real(self, ids, cache, adapters)

    monkeypatch.setattr(type(model), "step", step)
    with pytest.raises(UpstreamProtocolError, match="out of memory"):
        await collect(backend, ask())
    failing = False
    assert isinstance(await collect(backend, ask()), Answer)


async def test_a_torch_thread_that_dies_leaves_nobody_waiting(tiny_folder, monkeypatch):
    async with running(tiny_folder) as backend:
        task = asyncio.create_task(collect(backend, ask(max_tokens=500)))
        await asyncio.sleep(0.02)
        monkeypatch.setattr(type(backend._engine.scheduler), "_collect", lambda self: 1 // 0)
        with pytest.raises(NotReady):
            await task
        with pytest.raises(NotReady, match="has stopped"):
            await backend.probe()


@pytest.mark.parametrize("params", [{"max_batch": 0}, {"threads": "2"}, {"temperature": 3}, {"colour": 1}])
def test_options_name_the_entry_and_the_field(params):
    with pytest.raises(ConfigError, match=f"'tiny'.*{next(iter(params))}"):
        create_backend(
            Deployment(model_name="tiny", provider="local", upstream_model="x", params=params), SonaSettings()
        )
