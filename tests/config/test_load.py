"""Configuration files: LiteLLM's `model_list`, the strict `sona:` block, what is refused and in which words."""

import logging
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.config.keys import check_keys, hash_key, key_name
from sona_stream.config.load import (
    check_bind,
    is_loopback,
    load_settings,
    read_settings,
    settings_for_local,
    settings_for_upstream,
)
from sona_stream.config.settings import (
    DEFAULT_LOCAL_MODEL,
    Deployment,
    KeySettings,
    Settings,
    SonaSettings,
    TimeoutSettings,
)
from sona_stream.config.strict import convert
from sona_stream.errors import ConfigError

# As LiteLLM's own documentation writes such a file.
LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure-like
      api_base: http://127.0.0.1:9000/
      api_key: "os.environ/MY_KEY"
      rpm: 6
      timeout: 300
      stream_timeout: 60
      extra_headers: {"x-team": "os.environ/MY_TEAM"}
    model_info: {id: first, input_cost_per_token: 0.000001}
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o-2024, api_base: "https://example.test/v1", ssl_verify: false, rpm: 9}
  - model_name: coder
    litellm_params: {model: hosted_vllm/Qwen/Qwen2.5-Coder, api_base: "http://gpu:8000/v1"}
  - model_name: gpt-4o
    litellm_params: {model: groq/llama-3.1-8b}
litellm_settings: {drop_params: true, callbacks: ["os.environ/NEVER_SET"]}
router_settings: {routing_strategy: simple-shuffle}
general_settings: {master_key: sk-1234}
weather: 1
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "HOSTED_VLLM_API_BASE"):
        monkeypatch.delenv(name, raising=False)

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def read(path):
    return read_settings(path, backends={"openai", "local", "mine"})


def one(params, rest=""):
    return f"model_list:\n  - model_name: m\n    litellm_params: {params}\n{rest}"


def refused(path):
    with pytest.raises(ConfigError) as raised:
        read(path)
    return str(raised.value)


def test_an_existing_litellm_file_loads(write, monkeypatch):
    monkeypatch.setenv("MY_KEY", "k1")
    monkeypatch.setenv("MY_TEAM", "t1")
    monkeypatch.setenv("GROQ_API_KEY", "k2")
    found, warnings = read(write(LITELLM))
    first, second, coder, groq = found.models
    assert first == Deployment(
        model_name="gpt-4o",
        provider="openai",
        upstream_model="azure-like",
        api_base="http://127.0.0.1:9000",
        api_key="k1",
        timeouts=TimeoutSettings(connect=5.0, first_byte=300.0, idle=60.0),
        params={"extra_headers": {"x-team": "t1"}},
        info={"id": "first", "input_cost_per_token": 0.000001},
        id="first",
    )
    assert (second.upstream_model, second.ssl_verify, second.api_key) == ("gpt-4o-2024", False, None)
    assert (coder.upstream_model, coder.provider) == ("Qwen/Qwen2.5-Coder", "openai")
    assert (groq.api_base, groq.api_key) == ("https://api.groq.com/openai/v1", "k2")
    assert [model.id for model in found.models] == ["first", "gpt-4o", "coder", "gpt-4o#2"]
    assert found.sona == SonaSettings()
    for section in ("litellm_settings", "router_settings", "general_settings", "weather"):
        assert sum(f"`{section}`" in warning for warning in warnings) == 1
    assert sum("litellm_params.rpm" in warning for warning in warnings) == 1
    assert len(warnings) == 5


def test_warnings_are_logged_once_each(write, caplog):
    path = write(one("{model: gpt, api_key: k}", "router_settings: {}\n"))
    with caplog.at_level(logging.WARNING):
        load_settings(path)
    assert [record.message for record in caplog.records] == [
        f"{path}: the section `router_settings` is LiteLLM's and is not used here"
    ]


def test_without_a_file_the_local_model_answers():
    (model,) = load_settings(None).models
    assert (model.model_name, model.provider, model.upstream_model) == (
        DEFAULT_LOCAL_MODEL,
        "local",
        DEFAULT_LOCAL_MODEL,
    )


def test_a_file_of_our_own_options_alone_keeps_the_local_model(write):
    found, warnings = read(write("sona: {learning: auto}"))
    assert found.models == settings_for_local().models
    assert found.sona.learning == "auto"
    assert "model_list" in warnings[0]
    assert read(write(""))[0].sona == SonaSettings()


@pytest.mark.parametrize(
    ("model", "extra", "provider", "upstream", "base"),
    [
        ("gpt-4o", "", "openai", "gpt-4o", "https://api.openai.com/v1"),
        ("openai/gpt-4o", "", "openai", "gpt-4o", "https://api.openai.com/v1"),
        ("openai/org/model", ", api_base: 'http://x/v1/'", "openai", "org/model", "http://x/v1"),
        ("org/model", ", custom_llm_provider: openai, base_url: 'http://x'", "openai", "org/model", "http://x"),
        ("text-completion-openai/davinci", "", "openai", "davinci", "https://api.openai.com/v1"),
        ("hosted_vllm/q/w", ", api_base: 'http://x/v1'", "openai", "q/w", "http://x/v1"),
        ("vllm/q/w", ", api_base: 'http://x/v1'", "vllm", "q/w", "http://x/v1"),
        ("ollama/llama3", ", api_base: 'http://o:11434'", "openai", "llama3", "http://o:11434/v1"),
        ("ollama_chat/llama3", "", "openai", "llama3", "http://localhost:11434/v1"),
        ("local/models/mine", "", "local", "models/mine", None),
        ("local//srv/mine", "", "local", "/srv/mine", None),
        ("mine/anything", ", own_option: 3", "mine", "anything", None),
    ],
)
def test_providers(write, model, extra, provider, upstream, base):
    (found,) = read(write(one(f"{{model: '{model}'{extra}}}")))[0].models
    assert (found.provider, found.upstream_model, found.api_base) == (provider, upstream, base)
    assert found.params == ({"own_option": 3} if provider == "mine" else {})


def test_the_environments_key_goes_to_the_providers_own_address_only(write, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert read(write(one("{model: openai/x}")))[0].models[0].api_key == "secret"
    assert read(write(one("{model: openai/x, api_base: 'http://elsewhere'}")))[0].models[0].api_key is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://mirror/v1")
    assert read(write(one("{model: openai/x}")))[0].models[0].api_base == "http://mirror/v1"


def test_numbers_may_come_from_the_environment(write, monkeypatch):
    monkeypatch.setenv("WAIT", "12.5")
    monkeypatch.setenv("WHO", "openai/gpt")
    monkeypatch.setenv("SIZE", "3")
    params = "{model: os.environ/WHO, timeout: os.environ/WAIT}"
    found = read(write(one(params, "sona: {max_body_mb: os.environ/SIZE}")))[0]
    assert (found.models[0].upstream_model, found.models[0].timeouts.first_byte) == ("gpt", 12.5)
    assert found.sona.max_body_mb == 3


@pytest.mark.parametrize(
    ("said", "verify"),
    [("False", False), ("true", True), (" FALSE ", False), ("/ca.pem", "/ca.pem"), (None, True)],
)
def test_whether_certificates_are_checked_may_come_from_the_environment(write, monkeypatch, said, verify):
    monkeypatch.setenv("CHECK", said or "")
    params = "{model: openai/x" + (", ssl_verify: os.environ/CHECK}" if said else "}")
    found = read(write(one(params)))[0].models[0].ssl_verify
    assert (type(found), found) == (type(verify), verify)


def test_an_empty_word_on_certificates_is_refused(write):
    assert "model_list[0] (m): litellm_params.ssl_verify must be" in refused(
        write(one("{model: openai/x, ssl_verify: ''}"))
    )


def test_what_a_compatible_server_is_sent(write):
    text = one("{model: x, headers: {x-a: b}, organization: o, max_connections: 9, forward_headers: [x-c]}")
    found, warnings = read(write(text))
    assert found.models[0].params == {
        "extra_headers": {"x-a": "b"},
        "organization": "o",
        "max_connections": 9,
        "forward_headers": ["x-c"],
    }
    assert warnings == []


def test_default_timeouts_come_from_our_block(write):
    text = one("{model: x, stream_timeout: 7}", "sona: {timeouts: {connect: 1, first_byte: 2, idle: 3}}")
    assert read(write(text))[0].models[0].timeouts == TimeoutSettings(connect=1, first_byte=2, idle=7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (one("{model: anthropic/claude}"), ["model_list[0] (m)", "'anthropic'", "hosted_vllm", "mine"]),
        (one("{model: opnai/x}"), ["did you mean 'openai'"]),
        (one("{model: hosted_vllm/x}"), ["model_list[0] (m)", "api_base"]),
        (one("{model: openai/}"), ["names no model"]),
        (one("{model: x, custom_llm_provider: 5}"), ["model_list[0] (m)", "custom_llm_provider", "not 5"]),
        (one("{model: x, custom_llm_provider: [openai]}"), ["custom_llm_provider", "['openai']"]),
        (one("{}"), ["model_list[0] (m)", "model"]),
        (one("{model: x, api_base: 'ftp://x'}"), ["ftp://x", "http"]),
        (one("{model: x, timeout: -1}"), ["litellm_params.timeout", "above 0", "-1"]),
        (one("{model: x, timeout: soon}"), ["litellm_params.timeout", "'soon'"]),
        (one("{model: x, timeout: .nan}"), ["litellm_params.timeout", "finite"]),
        (one("{model: x, api_key: os.environ/NOT_SET_HERE}"), ["model_list[0] (m)", "NOT_SET_HERE"]),
        ("sona: {state_dir: os.environ/NOT_SET_HERE}", ["sona.state_dir", "NOT_SET_HERE"]),
        ("model_list: []", ["model_list", "at least one"]),
        ("model_list: {a: b}", ["model_list"]),
        ("model_list: [x]", ["model_list[0]"]),
        ("model_list: [{litellm_params: {model: x}}]", ["model_list[0]", "model_name"]),
        (one("{model: x}").replace("m\n", "sona/auto\n", 1), ["sona/auto"]),
        ("model_list:\n" + 2 * "- {model_name: m, litellm_params: {model: x}, model_info: {id: a}}\n", ["'a'"]),
        ("snoa: {}", ["`snoa`", "did you mean `sona`"]),
        ("models_list: []", ["did you mean `model_list`"]),
        ("- a", ["mapping"]),
        ("a: [", ["not YAML"]),
        ("sona: 5", ["`sona`", "mapping"]),
        ("sona: {routing: {polcy: x}}", ["`sona.routing.polcy`", "did you mean `policy`"]),
        ("sona: {metrics: {stars: {maks: 5}}}", ["`sona.metrics.stars.maks`", "did you mean `max`"]),
        ("sona: {keys: [{tenat: a}]}", ["`sona.keys[0].tenat`", "did you mean `tenant`"]),
        ("sona: {learning: sometimes}", ["`sona.learning`", "'sometimes'"]),
        ("sona: {max_body_mb: 0}", ["`sona.max_body_mb`", "1", "it is 0"]),
        ("sona: {learner: {anchor: .inf}}", ["`sona.learner.anchor`", "finite"]),
        ("sona: {learner: {ratio_clip: [1.1, 1.3]}}", ["sona.learner.ratio_clip"]),
        ("sona: {metrics: {stars: {min: 5, max: 5}}}", ["sona.metrics.stars.max"]),
        ("sona: {scoring: {weights: {logprob: -1}}}", ["sona.scoring.weights.logprob"]),
        ("sona: {routing: {types: {Coding: m}}}", ["sona.routing.types.Coding", "CodeGen"]),
        ("sona: {routing: {types: {CodeGen: m}}}", ["sona.routing.types.CodeGen", "'m'", DEFAULT_LOCAL_MODEL]),
        ("sona: {routing: {default_model: m}}", ["sona.routing.default_model"]),
        ("sona: {routing: {fallbacks: {m: [m]}}}", ["sona.routing.fallbacks.m"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(write, text, words):
    message = refused(write(text))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "no", "false"])
def test_a_bare_off_is_the_word_where_the_field_knows_it(write, word):
    said, _ = read(write(f"sona: {{learning: {word}, memory: {{accepted: {word}, contextual: {word}}}}}"))
    assert (said.sona.learning, said.sona.memory.accepted, said.sona.memory.contextual) == ("off", "off", False)
    assert read(write("sona: {learning: 'off'}"))[0].sona.learning == "off"
    for other in ("{learning: on}", "{storage: off}", "{routing: {types: {CodeGen: off}}}"):
        assert "got `bool`" in refused(write(f"sona: {other}"))


class Switch(msgspec.Struct):
    mode: Literal["on", "half"] | None = None
    either: bool | Literal["on"] = False
    more: tuple[Literal["on", "off"], ...] = ()
    named: dict[str, Literal["off"]] = {}


def test_on_is_a_word_as_off_is():
    said = convert({"mode": True, "more": [False, True], "named": {"x": False}}, Switch, "switch")
    assert said == Switch(mode="on", more=("off", "on"), named={"x": "off"})
    assert convert({"mode": None, "either": True}, Switch, "switch") == Switch(either=True)


def test_files_that_cannot_be_read(tmp_path):
    assert "No such file" in refused(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(binary)


PLAIN = "sk-plain-secret"


@pytest.mark.parametrize(
    "keys", [f"[{{key: {PLAIN}}}]", f"[{PLAIN}]", f"[{{key: [{PLAIN}]}}]", f"{{a: {PLAIN}}}", PLAIN]
)
def test_a_plain_key_is_refused_and_never_repeated(write, keys):
    message = refused(write(f"sona: {{keys: {keys}}}"))
    assert "sona.keys" in message
    assert PLAIN not in message
    if keys.startswith("[{key: sk"):
        assert "sona-stream keys hash" in message


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1))
def test_hashes_are_accepted(key):
    check_keys((KeySettings(key=hash_key(key)),))


def test_keys_are_checked():
    a, b = hash_key("a"), hash_key("b")
    assert a == "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    for keys, word in (
        ((KeySettings(key=a), KeySettings(key=b), KeySettings(key=a)), "sona.keys[2].key is the same"),
        ((KeySettings(key=a, tenant="a/b"),), "tenant"),
        ((KeySettings(key=a, tenant=""),), "tenant"),
        ((KeySettings(key=a, roles=()),), "roles"),
        ((KeySettings(key=a.upper()),), "not a hash"),
        (
            (KeySettings(key=a, name="eve"), KeySettings(key=hash_key("c")), KeySettings(key=b, name="eve")),
            "sona.keys[2] is called the same as sona.keys[0], both of the tenant 'default'",
        ),
        (
            (KeySettings(key=a), KeySettings(key=b, name="ca978112")),
            "sona.keys[1] is called the same as sona.keys[0]",
        ),
    ):
        with pytest.raises(ConfigError) as raised:
            check_keys(keys)
        assert word in str(raised.value)
    check_keys((KeySettings(key=a, name="eve"), KeySettings(key=b, name="eve", tenant="other")))
    check_keys((KeySettings(key=a), KeySettings(key=b), KeySettings(key=hash_key("c"), name="")))
    assert (key_name(KeySettings(key=a)), key_name(KeySettings(key=a, name="n"))) == ("ca978112", "n")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.7", False),
        ("no-such-host.invalid", False),
    ],
)
def test_other_addresses_need_keys(host, loopback):
    assert is_loopback(host) is loopback
    keyed = SonaSettings(keys=(KeySettings(key=hash_key("k")),))
    check_bind(Settings(models=(), sona=keyed), host)
    if loopback:
        check_bind(settings_for_local(), host)
    else:
        with pytest.raises(ConfigError, match=r"sona\.keys"):
            check_bind(settings_for_local(), host)


def test_one_upstream_by_its_address():
    (model,) = settings_for_upstream("http://gpu:8000/").models
    assert (model.model_name, model.upstream_model, model.api_base) == ("*", "*", "http://gpu:8000/v1")
    found = settings_for_upstream("http://gpu:8000/v1", models=["a", "org/b"], api_key="k").models
    assert [(m.model_name, m.upstream_model, m.api_key) for m in found] == [
        ("a", "a", "k"),
        ("org/b", "org/b", "k"),
    ]
    with pytest.raises(ConfigError, match="http"):
        settings_for_upstream("gpu:8000")


def test_one_local_model_by_path_or_id():
    assert settings_for_local("/srv/models/tiny/").models[0].model_name == "tiny"
    model = settings_for_local("org/tiny").models[0]
    assert (model.model_name, model.upstream_model, model.provider) == ("tiny", "org/tiny", "local")


def test_the_wildcard(write):
    text = one("{model: openai/*, api_base: 'http://x'}").replace("model_name: m", "model_name: '*'")
    assert read(write(text))[0].models[0].upstream_model == "*"
    found, warnings = read(write(text.replace("'*'", "'gpt-*'")))
    assert found.models[0].model_name == "gpt-*"
    assert any("pattern" in warning for warning in warnings)
