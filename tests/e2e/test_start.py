"""`serve` that cannot: it ends at once, with one line that says what to do."""

from __future__ import annotations

import json
import socket

import openai
import pytest
from program import command, until

from sona_stream.app.engine_settings import engine_config, outside_guide
from sona_stream.config.settings import Settings, SonaSettings
from sona_stream.errors import ConfigError


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
    assert "sona.keys" in _refused("--host", "0.0.0.0", "--port", "0", state=tmp_path, forked=False)


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
    config = written(sona={"engine": {"microLoraRank": 3}})
    said = _refused("--config", config, "--port", "0", state=tmp_path)
    assert "sona.engine: micro_lora_rank must be a whole number in 1 to 2" in said


@pytest.mark.parametrize(
    ("engine", "named"),
    [
        ({"hidden_dim": 64}, "hidden_dim cannot be set"),
        ({"profile": "fast"}, "realtime, batch, research, edge"),
        ({"profile": [1]}, "realtime, batch, research, edge, not [1]"),
        ({"ewcLambda": 1, "ewc_lambda": 2}, "ewc_lambda is given twice"),
        ({"lr": 1}, "unknown engine parameter 'lr'"),
    ],
)
def test_engine_settings_that_make_no_sense(engine, named):
    settings = Settings(models=(), sona=SonaSettings(engine=engine))
    with pytest.raises(ConfigError, match=r"^sona\.engine: ") as caught:
        engine_config(settings, 48)
    assert named in str(caught.value)


def test_engine_settings_take_a_profile_and_warn_outside_the_guide():
    settings = Settings(models=(), sona=SonaSettings(engine={"profile": "edge", "patternClusters": 9999}))
    config = engine_config(settings, 48)
    assert (config.hidden_dim, config.micro_lora_rank, config.pattern_clusters) == (48, 1, 9999)
    (warning,) = outside_guide(settings)
    assert "pattern_clusters = 9999" in warning


def test_flags_that_exclude_each_other(tmp_path):
    assert "exclude each other" in _refused("--model", "x", "--upstream", "http://x", code=2, state=tmp_path)
    assert "--config" in _refused("--config", str(tmp_path / "nowhere.yaml"), code=2, state=tmp_path)
    assert "http://nonsense" in _refused("--upstream", "nonsense", code=2, state=tmp_path)


def test_a_model_that_cannot_be_had_ends_the_program(tmp_path):
    said = _refused("--model", str(tmp_path / "nothing"), "--port", "0", state=tmp_path / "state")
    assert "no model at" in said
    assert "config.json" in said


def test_a_dead_upstream_is_told_and_the_program_waits_for_it(serve, tmp_path):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}"
    program = serve("--upstream", url, ready=False, forked=False)
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
