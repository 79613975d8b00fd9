"""`serve` that cannot: it ends at once, with one line that says what to do."""

from __future__ import annotations

import json
import socket

import openai
import pytest
from program import command, until


def _refused(*arguments, code=1, **options):
    ended = command("serve", *arguments, **options)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Error: " in ended.stderr
    return ended.stderr.split("Error: ", 1)[1]


@pytest.fixture
def written(tmp_path):
    def write(**settings):
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(settings))
        return str(path)

    return write


def test_an_open_address_without_keys_is_refused(tmp_path):
    assert "sona.keys" in _refused("--host", "0.0.0.0", "--port", "0", state=tmp_path)


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = _refused("--port", port, "--upstream", "http://127.0.0.1:9", state=tmp_path)
    assert port in said
    assert "--port" in said


def test_an_unknown_field_is_named_with_its_neighbour(written, tmp_path):
    said = _refused("--config", written(sona={"lerning": "off"}), state=tmp_path)
    assert "lerning" in said
    assert "learning" in said


def test_an_engine_field_is_named(written, tmp_path):
    for engine, named in (
        ({"micro_lora_rank": 3}, "micro_lora_rank must be a whole number in 1 to 2"),
        ({"hidden_dim": 64}, "hidden_dim cannot be set"),
        ({"profile": "fast"}, "realtime"),
    ):
        assert named in _refused("--config", written(sona={"engine": engine}), "--port", "0", state=tmp_path)


def test_flags_that_exclude_each_other(tmp_path):
    assert "exclude each other" in _refused("--model", "x", "--upstream", "http://x", code=2, state=tmp_path)
    assert "--config" in _refused("--config", str(tmp_path / "nowhere.yaml"), code=2, state=tmp_path)
    assert "http" in _refused("--upstream", "nonsense", state=tmp_path)


def test_a_model_that_cannot_be_had_ends_the_program(tmp_path):
    said = _refused("--model", str(tmp_path / "nothing"), "--port", "0", state=tmp_path / "state")
    assert "no model at" in said
    assert "config.json" in said


def test_a_dead_upstream_is_told_and_the_program_waits_for_it(serve, tmp_path):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
    program = serve("--upstream", url, ready=False)
    client = program.client()
    assert client.http.get("/health/liveness").status_code == 200
    readiness = client.http.get("/health/readiness")
    assert readiness.status_code == 503
    with pytest.raises(openai.APIStatusError) as caught:
        client.openai.chat.completions.create(model="any", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.status_code == 502
    assert url.removeprefix("http://") in str(caught.value)
    until(lambda: "no backend answers" in client.http.get("/health/readiness").text)
    assert program.stop() == 0
