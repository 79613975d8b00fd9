"""The live example's own arithmetic and its client side; the run itself needs the model and minutes."""

import asyncio
import importlib.util
import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest

from sona_stream.config.load import load_settings

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("live_adaptation", EXAMPLES / "live_adaptation.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["live_adaptation"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(EXAMPLES))


def test_unseen_questions_are_unseen(example):
    train, unseen = example.questions("train"), example.questions("unseen")
    assert (len(train), len(unseen)) == (120, 32)
    assert len({q.lower() for q in train + unseen}) == 152


def test_reward_asks_for_a_finished_sentence_of_some_length(example):
    def score(words, finish="stop", end="."):
        return example.reward(" ".join(["word"] * words) + end, finish)

    assert score(20) == 1.0
    assert score(20, "length") == 0.0
    assert score(1) == score(2) == score(60) == score(0, end="") == 0.0
    assert score(20, end="") == pytest.approx(0.3)
    rising, falling = [score(n) for n in range(1, 9)], [score(n) for n in range(30, 61)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert max(abs(a - b) for a, b in pairwise(falling)) < 0.05, "smooth"


def test_configuration_is_accepted_and_gives_each_arm_a_tenant(example, tmp_path):
    text, keys = example.config_for(2)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    settings = load_settings(file)
    tenants = [key.tenant for key in settings.sona.keys]
    assert tenants == ["operator", "learn-0", "control-0", "learn-1", "control-1"]
    assert len({key for three in keys for key in three}) == 5
    assert "admin" not in settings.sona.keys[1].roles


def answers_of(example, texts, reason="stop"):
    return [example.Answer("q", text, reason, str(i)) for i, text in enumerate(texts)]


def test_distinct2_ratio_is_one_for_itself_and_falls_for_loops(example):
    rng = np.random.default_rng(0)
    varied = answers_of(example, [" ".join(map(str, rng.integers(0, 10**6, 20))) for _ in range(8)])
    looped = answers_of(example, ["and and and and and and and and"] * 32)
    same = example.Outcome(varied, varied, varied)
    assert example.distinct2_ratio(same) == pytest.approx(1.0)
    assert example.distinct2_ratio(example.Outcome(varied, looped, varied)) < 0.05


def test_noise_is_two_standard_errors_over_questions(example):
    short, long = "word " * 19 + "end.", "word " * 59 + "end."
    before = answers_of(example, [short] * 8 + [long] * 8)
    after = answers_of(example, [long] * 4 + [short] * 8 + [long] * 4)
    differences = np.asarray([-1.0, 0.0, 1.0, 0.0])
    assert example.noise(before, after) == pytest.approx(2 * differences.std(ddof=1) / 2)


class Server:
    """Answers with texts whose rewards differ, and remembers what it is told."""

    def __init__(self):
        self.rewards, self.told = {}, {}

    def __call__(self, request):
        body = json.loads(request.content)
        if request.url.path == "/v1/feedback":
            self.told[body["request_id"]] = body["value"]
            return httpx.Response(200, json={})
        number = len(self.rewards)
        text = " ".join(["word"] * (2 + number % 7)) + "."
        request_id = f"r{number}"
        self.rewards[request_id] = min(1.0, max(0.0, (number % 7) / 6))
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]}, headers={"x-sona-request-id": request_id})


@pytest.mark.parametrize("permuted", [False, True])
async def test_the_control_gets_the_same_ratings_for_other_answers(example, permuted, monkeypatch):
    monkeypatch.setattr(example, "FEEDBACKS", 50)
    server = Server()
    tenant = example.Tenant("http://test", "k")
    await tenant.http.aclose()
    tenant.http = httpx.AsyncClient(base_url="http://test", transport=httpx.MockTransport(server))
    async with tenant.http, asyncio.timeout(10):
        await tenant.teach(1, permuted=permuted)
    assert set(server.told) == set(server.rewards)
    assert len(server.told) == 50
    assert Counter(f"{v:.6f}" for v in server.told.values()) == Counter(f"{v:.6f}" for v in server.rewards.values())
    own = sum(server.told[name] == pytest.approx(value) for name, value in server.rewards.items())
    assert (own == 50) is not permuted
    assert not permuted or own < 25
