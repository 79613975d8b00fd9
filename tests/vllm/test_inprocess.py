"""vLLM's engine in this process as a backend: one real engine for all tests, in the order they stand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from hook_meddler import NAME, HookMeddler
from tiny_model import ask, collect

from sona_stream.config.settings import Deployment, SonaSettings
from sona_stream.errors import InvalidRequest, ModelUnavailable, NotFound, NotReady, UpstreamProtocolError
from sona_stream.events import AdapterRef, Delta, EpisodeRef
from sona_stream.lora import LoraWeights, LowRank, TokenSignal
from sona_stream.protocols import Backend
from sona_stream_adapters.text import reference_ids
from sona_stream_adapters.vllm.inprocess import create_backend

pytestmark = pytest.mark.asyncio(loop_scope="module")

D = 128
ARGUMENTS = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "dtype": "float32",
    "enforce_eager": True,
    "seed": 0,
    "distributed_executor_backend": "mp",  # the model in a process of its own, as without this folder's settings
}


def deployment(source, **params):
    params = {"engine_args": ARGUMENTS, **params}
    return Deployment(model_name="tiny", provider="vllm_inprocess", upstream_model=str(source), params=params)


async def ready(backend, seconds=120.0):
    async with asyncio.timeout(seconds):
        while True:
            try:
                await backend.probe()
                return
            except NotReady:
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def meddler(tmp_path_factory):
    """Its environment is this process's, for the engine's processes inherit it."""
    made = HookMeddler(tmp_path_factory.mktemp("meddler"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**made.environment, "VLLM_PLUGINS": f"sona,{NAME}"}.items():
            patch.setenv(name, value)
        patch.syspath_prepend(made.folder)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(model_folder, meddler, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for processes of the engine's own")
    async with create_backend(deployment(model_folder), SonaSettings()) as made:
        await ready(made)
        yield made
        assert made.host_problem == ""
        (stats,) = (await made._link.json("GET", "stats"))["engines"]
        assert (stats["disabled"], stats["mismatch"]) == ("", 0)


@pytest.fixture(scope="module")
def model(model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]


def greedy(model, ids, n):
    ids, out = list(ids), []
    for _ in range(n):
        out.append(int(logits(model, ids).argmax()))
        ids.append(out[-1])
    return out


def weights(seed, size=0.4):
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((2, D)) / np.sqrt(D)).astype(np.float32)
    return LoraWeights(LowRank(A, (size * rng.standard_normal((D, 2))).astype(np.float32)))


async def counted(backend, name):
    """A count of the hook in the engine's worker."""
    (stats,) = (await backend._link.json("GET", "stats"))["engines"]
    return stats[name]


async def live(backend):
    """Requests that the engine's workers still know."""
    return await counted(backend, "live_requests")


async def none_is_live(backend):
    async with asyncio.timeout(20):
        while await live(backend):  # noqa: ASYNC110 - it is another process that ends them
            await asyncio.sleep(0.005)


async def test_it_is_a_backend_and_its_host_names_the_model_as_a_server_would(backend, model_folder):
    from sona_stream_adapters.peft.checkpoint import Checkpoint
    from sona_stream_adapters.peft.source import fingerprint_in_vllm

    assert isinstance(backend, Backend)
    assert backend.host.hidden_dim == D
    assert backend.host.fingerprint == fingerprint_in_vllm(Checkpoint(model_folder))


async def test_an_answer(backend, model, tokenizer):
    answer = await collect(backend, ask(max_tokens=12))
    prompt = tokenizer("the quick brown")["input_ids"]
    assert answer.ids() == greedy(model, prompt, 12)
    assert answer.head.prompt_ids == tuple(prompt)
    assert (answer.head.model, answer.head.adapter) == ("tiny", None)
    assert answer.text() == tokenizer.decode(answer.ids())
    assert answer.finish.reason == answer.pieces[-1].finish_reason == "length"
    assert (answer.finish.usage.prompt_tokens, answer.finish.usage.completion_tokens) == (len(prompt), 12)
    assert answer.finish.completion_id == "cmpl-r"


async def test_chat_goes_through_the_template(backend, tokenizer):
    answer = await collect(backend, ask("hello", endpoint="chat.completions"))
    assert tokenizer.decode(answer.head.prompt_ids) == "user: hello\nassistant: "
    assert answer.finish.completion_id == "chatcmpl-r"


async def test_many_at_once_answer_as_each_alone(backend):
    prompts = ["the", "quick brown fox jumps over", "lazy dog: " * 9, "naïve ↔ 漢字"]
    sampling = {"max_tokens": 20, "temperature": 1.0, "seed": 5}
    alone = [(await collect(backend, ask(p, **sampling))).ids() for p in prompts]
    requests = [ask(p, id=f"r{i}", **sampling) for i, p in enumerate(prompts)]
    together = await asyncio.gather(*[collect(backend, one) for one in requests])
    assert [answer.ids() for answer in together] == alone


async def test_choices_have_streams_and_captures_of_their_own(backend):
    request = ask(id="choices", n=3, temperature=1.0, seed=3, max_tokens=10)
    answer = await collect(backend, request)
    ids = [answer.ids(index) for index in range(3)]
    assert len({tuple(one) for one in ids}) == 3
    assert answer.finish.usage.completion_tokens == 30
    for index, name in enumerate(("choices", "choices:1", "choices:2")):
        assert (await backend.host.capture(name)).token_ids.tolist() == ids[index]
    again = await collect(backend, dataclasses.replace(request, id="again"))
    assert [again.ids(index) for index in range(3)] == ids


async def test_a_stop_string_ends_answer_and_capture(backend):
    free = (await collect(backend, ask(max_tokens=60))).text()
    stop = free[9:13]
    answer = await collect(backend, ask(id="stopped", max_tokens=400, stop=(stop,)))
    assert answer.text() == free[: free.find(stop)]
    assert answer.finish.reason == "stop"
    capture = await backend.host.capture("stopped")
    assert capture.token_ids.tolist() == answer.ids()
    advantages = [np.ones(len(capture), np.float32)]
    gradient = await backend.host.gradient([capture], TokenSignal(weights(0), advantages, 0.0, None))
    assert gradient.tokens == len(answer.ids())
    assert await live(backend) == 0


async def test_the_end_token(backend):
    third = (await collect(backend, ask(max_tokens=30))).ids()[2]
    engine = backend._engine
    backend._engine = dataclasses.replace(engine, eos_ids=frozenset({third}))
    try:
        answer = await collect(backend, ask(max_tokens=30))
    finally:
        backend._engine = engine
    assert answer.ids().index(third) == len(answer.ids()) - 1
    assert answer.finish.reason == "stop"


async def test_logprobs(backend, model):
    answer = await collect(backend, ask(max_tokens=4, temperature=0.7, seed=1, logprobs=3))
    ids = list(answer.head.prompt_ids)
    for piece in answer.pieces:
        expected = torch.log_softmax(logits(model, ids), 0)
        assert piece.logprobs[0] == pytest.approx(float(expected[piece.token_ids[0]]), abs=1e-3)
        best = expected.topk(3).values.tolist()
        assert list(piece.top_logprobs[0].values()) == pytest.approx(best, abs=1e-3)
        ids += piece.token_ids


@pytest.mark.parametrize("leave_after", [0, 1, 5])
async def test_leaving_ends_the_request(backend, meddler, leave_after):
    seen, name = 0, f"left{leave_after}"
    with meddler.slow():
        async with backend(ask(id=name, max_tokens=400)) as events:
            async for event in events:
                if seen >= leave_after:
                    break
                seen += len(event.pieces) if isinstance(event, Delta) else 0
        await none_is_live(backend)
    if leave_after:
        # The engine draws on until it hears of it; how long that takes is the machine's affair.
        assert seen <= len(await backend.host.capture(name)) < 200
    assert not backend._engine.client.output_processor.request_states


def workers(backend):
    """Ids of the processes that the engine's core has begun; one of them runs the model."""
    (core,) = backend._engine.client.engine_core.resources.engine_manager.processes
    lists = Path(f"/proc/{core.pid}/task").glob("*/children")
    return [int(pid) for each in lists for pid in each.read_text().split()]


async def test_after_a_client_has_left_only_the_step_that_runs_ends(backend, meddler):
    """The model stands still while the client leaves: all that it had drawn was read, and the core has heard."""
    with meddler.slow():
        seen = await _left_while_it_stands(backend)
        await none_is_live(backend)
    assert seen <= len(await backend.host.capture("strictly")) <= seen + 1 < 200


async def _left_while_it_stands(backend):
    """How many tokens the client has read."""
    seen = 0
    async with backend(ask(id="strictly", max_tokens=400)) as events:
        while seen < 5:
            event = await anext(events)
            seen += len(event.pieces) if isinstance(event, Delta) else 0
        stopped = workers(backend)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            following = asyncio.ensure_future(anext(events))
            while (await asyncio.wait({following}, timeout=1.0))[0]:
                event = following.result()
                seen += len(event.pieces) if isinstance(event, Delta) else 0
                following = asyncio.ensure_future(anext(events))
            following.cancel()
            await asyncio.wait({following})
            await events.aclose()
            await asyncio.sleep(0.5)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    return seen


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask("the " * 600), "prompt"),
        (ask("the " * 600, endpoint="chat.completions"), "messages"),
        (ask(max_tokens=0), "max_tokens"),
        (ask(n=99), "n"),
        (ask(temperature=9.0), "temperature"),
        (ask(frequency_penalty=3.0), "frequency_penalty"),
        (dataclasses.replace(ask(), constrained=True), "tools"),
        (dataclasses.replace(ask(), prompt=(1, 99_999)), "prompt"),
    ],
)
async def test_bad_requests_name_the_field(backend, request_, param):
    with pytest.raises(InvalidRequest) as caught:
        await collect(backend, request_)
    assert caught.value.param == param
    if param in ("prompt", "messages") and isinstance(request_.prompt, str | None):
        assert "512" in str(caught.value)


async def test_an_answer_ends_where_the_context_ends(backend):
    answer = await collect(backend, ask("the quick brown fox " * 30, max_tokens=500))
    assert answer.finish.reason == "length"
    assert answer.finish.usage.total_tokens == 512


async def test_adapters_captures_and_gradients(backend):
    host, w = backend.host, weights(1)
    plain = await collect(backend, ask(max_tokens=16))
    await host.put_adapter("tiny/a/*", 3, w)
    ref = AdapterRef(key="tiny/a/*", version=3)
    bound = await collect(backend, ask(id="bound", max_tokens=16, adapter=ref))
    assert bound.head.adapter == ref
    assert bound.ids() != plain.ids()
    capture = await host.capture("bound")
    assert capture.token_ids.tolist() == bound.ids()
    assert capture.prompt_ids.tolist() == list(bound.head.prompt_ids)
    assert capture.adapter_versions.tolist() == [3] * 16
    signal_ = TokenSignal(w, [np.linspace(-1, 1, 16, dtype=np.float32)], 0.2, (0.0, 2.0))
    now = await host.gradient([capture], signal_)
    late = await host.encode(capture.prompt_ids, capture.token_ids, temperature=0.0, weights=w)
    np.testing.assert_allclose(late.logprobs, capture.logprobs, atol=1e-4)
    then = await host.gradient([late], signal_)
    np.testing.assert_allclose(now.micro_B, then.micro_B, atol=1e-3 * np.abs(now.micro_B).max())
    text = await host.encode(capture.prompt_ids, "a lazy dog")
    assert text.token_ids[-1] == 0  # the end token
    with pytest.raises(NotFound):
        await collect(backend, ask(adapter=AdapterRef(key="tiny/a/*", version=2, pinned=True)))
    mixed = await asyncio.gather(
        *[collect(backend, ask(id=f"x{i}", max_tokens=16, adapter=ref if i % 2 else None)) for i in range(6)]
    )
    assert [answer.ids() for answer in mixed] == [plain.ids(), bound.ids()] * 3


async def test_a_swap_takes_effect_while_the_answer_streams(backend, meddler):
    """From the first token drawn after the engine has taken it; where that is the engine's own count says, for it
    may be far ahead of who reads.
    """
    host, ref = backend.host, AdapterRef(key="tiny/swap/*", version=1)
    await host.put_adapter(ref.key, 1, weights(2))
    before, seen, at = await counted(backend, "captured_tokens"), 0, []
    with contextlib.ExitStack() as slow:
        slow.enter_context(meddler.slow())
        async with backend(ask(id="swap", max_tokens=200, adapter=ref)) as events:
            async for event in events:
                seen += len(event.pieces) if isinstance(event, Delta) else 0
                if seen >= 12 and not at:
                    at.append(await counted(backend, "captured_tokens") - before)
                    await host.put_adapter(ref.key, 2, weights(3))
                    at.append(await counted(backend, "captured_tokens") - before)
                    slow.close()
    versions = (await host.capture("swap")).adapter_versions.tolist()
    sent, taken = at
    assert versions == sorted(versions)
    assert set(versions) == {1, 2}
    assert sent <= versions.index(2) <= taken


CORRECTION = [200, 201, 17, 202, 203, 17, 204, 0]


def recalling(request):
    return dataclasses.replace(request, episodes=(EpisodeRef(key="e", gate=1.0), EpisodeRef(key="none", gate=0.5)))


async def test_a_remembered_answer_is_given_to_who_names_it(backend, model, tokenizer):
    host, space = backend.host, await backend.host.hidden_space()
    plain = await collect(backend, ask(max_tokens=12))
    prompt = list(plain.head.prompt_ids)
    assert not len((await host.encode(prompt, CORRECTION)).hidden)  # they stay with the engine
    capture = await host.encode(prompt, CORRECTION, hidden=True)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[*prompt, *CORRECTION[:-1]]]), output_hidden_states=True)
    np.testing.assert_allclose(capture.hidden, out.hidden_states[-1][0, len(prompt) - 1 :].numpy(), atol=1e-3)
    lead, rest = reference_ids(tokenizer, 511)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([lead + rest]), output_hidden_states=True)
    read = out.hidden_states[-1][0, len(lead) - 1 : -1].double().numpy()
    np.testing.assert_allclose(space.mean, read.mean(0), atol=1e-3)
    np.testing.assert_allclose(space.spread, read.std(0), rtol=1e-2)
    await host.put_episode("e", capture.hidden, capture.token_ids, space)
    answer = await collect(backend, recalling(ask(max_tokens=12, id="recalled")))
    assert answer.ids() == CORRECTION
    assert answer.finish.reason == "stop"
    kept = await host.capture("recalled")
    assert kept.memory.min() > 0.5
    signal_ = TokenSignal(weights(1), [np.ones(len(kept), np.float32)], 0.3)
    assert not (await host.gradient([kept], signal_)).micro_B.any()
    asked = [ask(id=f"y{i}", max_tokens=12) for i in range(3)]
    asked[1] = recalling(asked[1])
    mixed = await asyncio.gather(*[collect(backend, one) for one in asked])
    assert [one.ids() for one in mixed] == [plain.ids(), CORRECTION, plain.ids()]


async def killing(backend, pid):
    """The core dies in the middle of an answer."""
    async with backend(ask(max_tokens=400)) as events:
        async for event in events:
            if isinstance(event, Delta):
                os.kill(pid, signal.SIGKILL)


async def test_an_engine_that_dies_comes_back_with_its_adapters_and_episodes(backend, meddler):
    ref = AdapterRef(key="tiny/a/*", version=3)
    before = await collect(backend, ask(max_tokens=16, adapter=ref))
    instance = backend.host.instance
    (process,) = backend._engine.client.engine_core.resources.engine_manager.processes
    with meddler.slow(), pytest.raises((NotReady, UpstreamProtocolError)):
        await killing(backend, process.pid)
    with pytest.raises(NotReady):
        await collect(backend, ask())
    await ready(backend)
    assert backend.host.instance != instance
    after = await collect(backend, ask(max_tokens=16, adapter=ref))
    assert after.head.adapter == ref
    assert after.ids() == before.ids()
    assert (await collect(backend, recalling(ask(max_tokens=12)))).ids() == CORRECTION


# ---- what cannot be started


async def failure(source, **params):
    async with create_backend(deployment(source, **params), SonaSettings()) as made:
        with pytest.raises(ModelUnavailable) as caught:
            await ready(made)
    return str(caught.value)


async def test_a_path_without_a_model(tmp_path):
    assert str(tmp_path / "nothing") in await failure(tmp_path / "nothing")


async def test_an_argument_that_vllm_does_not_have(model_folder):
    said = await failure(model_folder, engine_args={"max_modl_len": 512})
    assert "max_modl_len" in said
    assert "max_model_len" in said


async def test_a_context_beyond_the_models(model_folder):
    assert "4096" in await failure(model_folder, engine_args={**ARGUMENTS, "max_model_len": 4096})
