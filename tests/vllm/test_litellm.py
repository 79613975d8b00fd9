"""A real LiteLLM proxy before `sona-stream serve` before a real `vllm serve`: two people share one LiteLLM key.

Needs a package index on the first run; `pytest tests/vllm/test_litellm.py --slow`.
"""

from __future__ import annotations

import dataclasses
import json
import re

import openai
import pytest
from litellm_proxy import MASTER_KEY, LiteLLM
from program import QUICK, Program
from vllm_serve import KEY, SERVED, VllmServe

from sona_stream.config.load import hash_key

pytestmark = pytest.mark.slow

USER = "x-litellm-user_api_key_end_user_id"
"""Header in which LiteLLM says whom it holds for the end user, wherever its client named him."""
QUESTIONS = ("hello there", "the quick brown fox", "what is it")


@pytest.fixture(scope="module")
def vllm(model_folder, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for servers")
    made = VllmServe(tmp_path_factory.mktemp("serve") / "log")
    made.start(model_folder)
    yield made
    assert made.stop() == 0, made.text[-4000:]


@pytest.fixture(scope="module")
def sona(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sona")
    params = {"model": f"vllm/{SERVED}", "api_base": vllm.base, "control_key": "os.environ/CONTROL"}
    key = {"key": hash_key("of-litellm"), "tenant": "acme", "roles": ["use", "teach"], "trusted_gateway": True}
    settings = {
        "model_list": [{"model_name": "m", "litellm_params": params}],
        "sona": {**QUICK, "keys": [key], "user_header": USER},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))
    program = Program(["--config", str(path)], folder / "state", folder / "log", CONTROL=KEY)
    yield program
    assert program.stop() == 0, program.log
    assert "Traceback" not in program.log


@pytest.fixture(scope="module")
def litellm(sona, tmp_path_factory):
    """``m`` tells the end user in a header, ``by-body`` in the body, ``plain``, as LiteLLM comes, not at all."""

    def entry(name, **more):
        params = {"model": "hosted_vllm/m", "api_base": f"{sona.url}/v1", "api_key": "of-litellm", **more}
        return {"model_name": name, "litellm_params": params}

    settings = {
        "model_list": [entry("m"), entry("by-body", allowed_openai_params=["user"]), entry("plain")],
        "litellm_settings": {
            "add_user_information_to_llm_headers": True,
            "model_group_settings": {"forward_client_headers_to_llm_api": ["m"]},
        },
        "general_settings": {
            "user_header_mappings": [{"header_name": "X-OpenWebUI-User-Id", "litellm_user_role": "customer"}]
        },
    }
    made = LiteLLM(settings, tmp_path_factory.mktemp("litellm"))
    yield made
    made.stop()


@pytest.fixture
def client(litellm):
    """Everybody's: they share LiteLLM's key."""
    with openai.OpenAI(base_url=litellm.url, api_key=MASTER_KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def teach(sona):
    """What the application behind LiteLLM says to sona-stream; returns (status, outcome)."""
    gateway = sona.client("of-litellm", model="m")

    def say(who, answer, **verdict):
        return gateway.feedback(request_id=answer.id, user=who, **verdict)

    return say


@dataclasses.dataclass
class Said:
    text: str
    adapter: str
    id: str
    """the completion's, which LiteLLM hands on"""
    request_id: str


def ask(client, who, text=QUESTIONS[0], *, model="m", headers=None):
    """A greedy answer, streamed. ``who``: the body's `user`."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        temperature=0,
        max_tokens=16,
        stream=True,
        extra_headers=headers,
        **({"user": who} if who else {}),
    )
    chunks = list(raw.parse())
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    told = {name: raw.headers[f"llm_provider-x-sona-{name}"] for name in ("adapter", "request-id")}
    return Said(said, told["adapter"], chunks[0].id, told["request-id"])


def test_what_one_user_of_a_key_teaches_reaches_him_alone(client, teach):
    others = [ask(client, "ben", text) for text in QUESTIONS]
    first = ask(client, "ann")
    assert {one.adapter for one in [*others, first]} == {"none"}
    assert first.text == others[0].text

    assert teach("ben", first, rating=-1)[0] == 404  # it is not his
    after = first
    for _ in range(24):
        if after.text != first.text:
            break
        status, outcome = teach("ann", after, correction="a brown fox")
        assert (status, outcome["status"]) == (200, "published"), outcome
        after = ask(client, "ann")
    hers = after.adapter.rpartition("@")[0]
    assert re.fullmatch(r"m/acme:[0-9a-f]{16}/\*", hers)
    assert after.text != first.text

    again = [ask(client, "ben", text) for text in QUESTIONS]
    assert [one.text.encode() for one in again] == [one.text.encode() for one in others]
    assert {one.adapter for one in again} == {"none"}

    status, outcome = teach("ben", again[0], rating=1)
    assert (status, outcome["status"]) == (200, "published"), outcome
    his = ask(client, "ben").adapter
    assert re.fullmatch(r"m/acme:[0-9a-f]{16}/\*@1", his)
    assert his.rpartition("@")[0] != hers
    now = ask(client, "ann")
    assert (now.adapter, now.text) == (after.adapter, after.text)


def test_feedback_may_name_the_header_of_the_answer(client, teach):
    answer = ask(client, "cleo")
    answer.id = answer.request_id
    assert teach("cleo", answer, rating=1)[1]["status"] == "published"


def test_every_way_to_name_the_end_user(client, teach):
    """The body's `user`, LiteLLM's own header, a header that its configuration maps, and through the body alone."""
    assert teach("dora", ask(client, "dora"), rating=1)[1]["status"] == "published"
    hers = ask(client, "dora").adapter
    assert hers.endswith("@1")
    assert ask(client, None, headers={"x-litellm-end-user-id": "dora"}).adapter == hers
    assert ask(client, None, headers={"X-OpenWebUI-User-Id": "dora"}).adapter == hers
    assert ask(client, "dora", model="by-body").adapter == hers
    assert ask(client, "eve", headers={USER: "dora"}).adapter == "none"  # LiteLLM's word replaces a client's
    assert ask(client, None).adapter == "none"


def test_litellm_by_itself_drops_the_user(client):
    """Hence the configuration above. Nobody is named then, and nobody gets another one's adapter."""
    assert ask(client, "dora", model="plain").adapter == "none"
