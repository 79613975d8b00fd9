"""What `serve` makes of its options. Whether it then serves: tests/e2e."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sona_stream.cli import main
from sona_stream_adapters.openai.headers import HeaderRules

CLIENT = ((b"authorization", b"Bearer client"), (b"x-api-key", b"client"))


@pytest.fixture
def serve(monkeypatch):
    """``serve(*arguments)`` -> (settings, grace) it would have served with; what it said, when it refused."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    seen = []
    monkeypatch.setattr("sona_stream.app.Application", lambda settings, directory: settings)
    monkeypatch.setattr("sona_stream.server.create_app", lambda settings: settings)
    monkeypatch.setattr("sona_stream.server.run.serve", lambda app, *_, grace, announce: seen.append((app, grace)))

    def start(*arguments):
        result = CliRunner().invoke(main, ["serve", *arguments])
        assert result.exit_code == (0 if seen else 2), result.output
        return seen.pop() if seen else result.output

    return start


@pytest.mark.parametrize(
    ("upstream", "key"),
    [
        ("https://api.openai.com", "sk-own"),
        ("https://api.openai.com/v1/", "sk-own"),
        ("https://API.OpenAI.com:443/v1", "sk-own"),
        ("http://10.0.0.5:8000", None),
        ("http://api.openai.com", None),  # in the clear
        ("https://api.openai.com:8443", None),
        ("https://api.openai.com@evil.example", None),
        ("https://api.openai.com.evil.example", None),
        ("https://evil.example/api.openai.com", None),
    ],
)
def test_openais_key_goes_to_openai_only(serve, monkeypatch, upstream, key):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    settings, _ = serve("--upstream", upstream)
    (model,) = settings.models
    assert model.api_key == key
    sent = dict(HeaderRules(model, settings.sona).upstream(CLIENT))
    if key:
        assert sent[b"authorization"] == b"Bearer sk-own"
        assert b"x-api-key" not in sent
    else:
        assert (sent[b"authorization"], sent[b"x-api-key"]) == (b"Bearer client", b"client")


@pytest.mark.parametrize(
    "wrong", ["http://h:99999", "ftp://h", "http://", "localhost:8000", "http://h/v1?x=1", "http://h#y"]
)
def test_a_wrong_upstream_is_named_by_its_option(serve, wrong):
    told = serve("--upstream", wrong)
    assert "Invalid value for --upstream" in told
    assert wrong in told


@pytest.mark.parametrize("option", ["--upstream", "--model"])
def test_an_empty_option_is_no_reason_to_serve_something_else(serve, option):
    told = serve(option, "")
    assert f"Invalid value for {option}: it is empty" in told
    assert "exclude each other" in serve(option, "", "--upstream" if option == "--model" else "--model", "x")


def test_the_scheme_may_be_in_capitals(serve):
    settings, _ = serve("--upstream", "HTTP://Gpu:8000")
    assert settings.models[0].api_base == "http://Gpu:8000/v1"


@pytest.mark.parametrize("upstream", ["http://10.0.0.5:8000", "https://api.openai.com"])
def test_a_named_key_goes_to_the_upstream(serve, monkeypatch, upstream):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    monkeypatch.setenv("GPU_KEY", "gpu")
    settings, _ = serve("--upstream", upstream, "--upstream-key-env", "GPU_KEY")
    assert dict(HeaderRules(settings.models[0], settings.sona).upstream(CLIENT))[b"authorization"] == b"Bearer gpu"


def test_a_named_key_must_be_there(serve, monkeypatch):
    asked = ("--upstream", "http://10.0.0.5:8000", "--upstream-key-env", "GPU_KEY")
    assert "GPU_KEY is not set" in serve(*asked)
    monkeypatch.setenv("GPU_KEY", " ")
    assert "GPU_KEY is not set, or empty" in serve(*asked)
    assert "api_key" in serve("--upstream-key-env", "GPU_KEY")


def test_the_grace_is_what_was_asked_for(serve):
    assert serve("--upstream", "http://gpu:8000")[1] == 30
    assert serve("--upstream", "http://gpu:8000", "--grace", "0")[1] == 0
    assert serve("--upstream", "http://gpu:8000", "--grace", "600")[1] == 600
    assert "--grace" in serve("--upstream", "http://gpu:8000", "--grace", "-1")
