"""`vllm serve --logits-processors ...:TenantBias` over HTTP: a file that comes while answers stream."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from sona_stream_adapters.vllm_plugin.logit_bias.file import TenantBias, write_bias

PROMPT = [5, 9, 17, 33, 65]
TOKENS = 950


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bias")


@pytest.fixture(scope="module")
def url(model_folder, folder, tmp_path_factory, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for servers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model_folder)]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--max-num-seqs", "8", "--dtype", "float32", "--enforce-eager"]
    command += ["--logits-processors", "sona_stream_adapters.vllm_plugin.logits:TenantBias"]
    own = {"SONA_VLLM_BIAS_DIR": str(folder), "SONA_VLLM_BIAS_POLL_MS": "20", "SONA_VLLM_BIAS_MAX": "1000"}
    others = {k: v for k, v in os.environ.items() if k not in ("SONA_VLLM", "VLLM_ENABLE_V1_MULTIPROCESSING")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**others, "VLLM_LOGGING_LEVEL": "INFO", **own},
            start_new_session=True,
        )
        try:
            base = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 300
            while not alive(base):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.5)
            yield base
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def alive(base):
    try:
        return httpx.get(f"{base}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def stream(base, tenant=None, *, tokens=TOKENS, at=None, then=None):
    """The ids of a greedy answer; ``then()`` is called when `at` of them have come."""
    ids, called = [], None
    body = {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    if tenant:
        body["vllm_xargs"] = {"sona_tenant": tenant}
    with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                ids += json.loads(line[6:])["choices"][0].get("token_ids") or []
            if at is not None and called is None and len(ids) >= at:
                called = len(ids)
                began = time.perf_counter()
                then()
                took = time.perf_counter() - began
    if called is not None:
        print(f"written after token {called}, in {took * 1e3:.1f} ms")
    return ids


def test_a_file_that_comes_while_answers_stream(url, folder):
    plain = stream(url)
    assert len(plain) == TOKENS
    token = next(i for i in range(1, 320) if i not in plain)
    bias = TenantBias("acme", np.array([token], np.int32), np.array([1000], np.float32), 320)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(stream, url)
        bound = stream(url, "acme", at=5, then=lambda: write_bias(folder, bias))
        assert other.result() == plain
    # On a busy machine an answer may be over before the client has read its first tokens.
    first = bound.index(token) if token in bound else TOKENS
    print(f"effective from token {first}")
    assert bound[:first] == plain[:first]
    assert set(bound[first:]) <= {token}
    assert set(stream(url, "acme", tokens=8)) == {token}
    (folder / "acme.safetensors").write_bytes(b"nonsense")
    time.sleep(0.2)
    assert set(stream(url, "acme", tokens=8)) == {token}
    assert stream(url, tokens=8) == plain[:8]


def test_a_tenant_that_is_no_name_gets_400(url):
    body = {"model": "m", "prompt": PROMPT, "max_tokens": 1, "vllm_xargs": {"sona_tenant": 7}}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "sona_tenant" in answer.text
