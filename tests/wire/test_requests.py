"""Decoding of requests: every field, every limit, and nothing lost from the body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sona_stream.errors import InvalidRequest
from sona_stream.events import Sampling
from sona_stream.wire import decode_request, read_model, replace_model

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "once"}


def chat(**fields):
    return decode_request("chat.completions", json.dumps({**CHAT, **fields}).encode())


def text(**fields):
    return decode_request("completions", json.dumps({**TEXT, **fields}).encode())


def test_defaults():
    got = chat()
    assert (got.endpoint, got.model, got.query, got.stream, got.include_usage) == (
        "chat.completions",
        "m",
        "hi",
        False,
        False,
    )
    assert got.messages == ({"role": "user", "content": "hi"},)
    assert (got.prompt, got.sampling, got.constrained, got.user, got.client_ids) == (
        None,
        Sampling(),
        False,
        None,
        (),
    )


def test_all_fields():
    got = chat(
        stream=True,
        stream_options={"include_usage": True},
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        max_tokens=9,
        stop=["a", "b"],
        seed=3,
        n=2,
        presence_penalty=1,
        frequency_penalty=-1,
        logprobs=True,
        top_logprobs=4,
        user="u",
        metadata={"request_id": "r", "id": "r2", "other": "no", "inference_id": 5},
        vendor={"x": 1},
    )
    assert got.stream
    assert got.include_usage
    assert got.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=("a", "b"),
        seed=3,
        n=2,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        logprobs=4,
    )
    assert (got.user, got.client_ids) == ("u", ("r", "r2"))


def test_nulls_are_absences():
    nulls = [
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "max_tokens",
        "user",
        "metadata",
    ]
    got = chat(**dict.fromkeys([*nulls, "logprobs", "tools", "response_format"]))
    assert (got.sampling, got.constrained) == (Sampling(), False)


def test_usage_is_for_streams_only():
    assert not chat(stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("messages", "query"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "tool", "content": "c"}],
            "b",
        ),
        ([{"role": "system", "content": "s"}], "s"),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "look"},
                        {"type": "image_url", "image_url": {"url": "data:"}},
                        {"type": "text", "text": "here"},
                    ],
                }
            ],
            "look\nhere",
        ),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_the_query_is_the_last_user_message(messages, query):
    assert chat(messages=messages).query == query


@pytest.mark.parametrize(
    ("fields", "constrained"),
    [
        ({"tools": []}, False),
        ({"tools": [{"type": "function"}]}, True),
        ({"functions": [{}]}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"guided_json": {"type": "object"}}, True),
        ({"guided_choice": ["a"]}, True),
        ({"structured_outputs": {"regex": "a"}}, True),
    ],
)
def test_constrained(fields, constrained):
    assert chat(**fields).constrained == constrained


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"temperature": 2.1}, "temperature", "between 0 and 2, got 2.1"),
        ({"temperature": -0.1}, "temperature", "between 0 and 2"),
        ({"temperature": "hot"}, "temperature", "Expected `float`, got `str`"),
        ({"temperature": "nan"}, "temperature", "between"),
        ({"temperature": 1e300}, "temperature", "between"),
        ({"top_p": 1.5}, "top_p", "between 0 and 1"),
        ({"n": 0}, "n", "between 1 and 128"),
        ({"n": 129}, "n", "between 1 and 128"),
        ({"n": True}, "n", "got `bool`"),
        ({"seed": 1 << 64}, "seed", "between"),
        ({"max_tokens": -1}, "max_tokens", "between 1 and"),
        ({"max_tokens": 0}, "max_tokens", "between 1 and"),
        ({"max_tokens": 9.5}, "max_tokens", "Expected `int`"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "between 1 and"),
        ({"presence_penalty": 3}, "presence_penalty", "between -2 and 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
        ({"logprobs": 5}, "logprobs", "Expected `bool`, got `int`"),
        ({"top_logprobs": 25, "logprobs": True}, "top_logprobs", "between 0 and 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"stop": [1]}, "stop[0]", "got `int`"),
        ({"stop": {"a": 1}}, "stop", "Expected `array`"),
        ({"stream_options": {"include_usage": "often"}}, "stream_options.include_usage", "got `str`"),
        ({"stream_options": 5}, "stream_options", "got `int`"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "must be one of system"),
        ({"messages": [{"role": "ipython"}]}, "messages[0].role", "got 'ipython'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got 'int'"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]", "got 'int'"),
    ],
)
def test_what_an_upstream_may_take_is_noted_with_the_field_and_its_limit(fields, param, says):
    (objection,) = chat(**fields).objections
    assert objection[0] == param
    assert says in objection[1]
    assert param in objection[1]


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"max_tokens": -1}, Sampling(max_tokens=-1)),
        ({"max_tokens": 100.0}, Sampling(max_tokens=100)),
        ({"max_tokens": "100", "temperature": "0.5"}, Sampling(max_tokens=100, temperature=0.5)),
        ({"temperature": 2.5}, Sampling(temperature=2.5)),
        ({"temperature": "hot", "stop": [1], "n": True, "seed": 1 << 64}, Sampling()),
        ({"n": "3", "stop": ""}, Sampling(n=3)),
        ({"n": 128}, Sampling(n=128)),
        ({"n": 129}, Sampling(n=128)),
        ({"n": 10**9}, Sampling(n=128)),
        ({"n": 0}, Sampling()),
        ({"n": -1}, Sampling()),
        ({"logprobs": True, "top_logprobs": 25}, Sampling(logprobs=25)),
        ({"top_logprobs": 5}, Sampling()),
    ],
)
def test_values_are_read_as_generously_as_servers_do(fields, sampling):
    assert chat(**fields).sampling == sampling


@pytest.mark.parametrize("true", [True, 1, "1", "true", "True"])
def test_truth_is_read_as_generously_as_servers_do(true):
    got = chat(stream=true, stream_options={"include_usage": true})
    assert (got.stream, got.include_usage, got.objections) == (True, True, ())


@pytest.mark.parametrize("false", [False, None, 0, "0", "false"])
def test_untruth_is_read_as_generously(false):
    got = chat(stream=false, stream_options={"include_usage": True})
    assert (got.stream, got.include_usage, got.objections) == (False, False, ())
    assert not chat(stream=True, stream_options={"include_usage": false}).include_usage


def test_what_openai_would_take_meets_no_objection():
    got = chat(
        temperature=2, top_p=0, n=1, max_tokens=1, seed=-1, logprobs=True, top_logprobs=20, stop=["a"], user="u"
    )
    assert got.objections == ()
    assert chat(max_tokens=100.0).objections == ()
    assert text(max_tokens=0, logprobs=20).objections == ()


def test_a_user_may_be_a_number():
    assert chat(user=12).user == "12"


def test_a_role_of_the_templates_own_is_not_the_users():
    said = [{"role": "user", "content": "q"}, {"role": "ipython", "content": "out"}, {"content": "x"}]
    assert chat(messages=said).query == "q"


def test_a_long_value_is_not_quoted_whole():
    (objection,) = chat(messages=[{"role": "x" * 9999}]).objections
    assert len(objection[1]) < 250


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"stream": "yes"}, "stream", "got `str`"),
        ({"stream": 2}, "stream", "got `int`"),
        ({"stream": []}, "stream", "got `array`"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "got `str`"),
        ({"model": ""}, "model", "1 to 256 printable"),
        ({"model": None}, "model", "Expected `str`"),
        ({"user": {"id": 5}}, "user", "got `object`"),
        ({"user": True}, "user", "got `bool`"),
    ],
)
def test_what_cannot_be_routed_or_learned_for_is_refused_by_the_fields_name(fields, param, says):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param
    assert says in str(caught.value)
    assert param in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"{}", b'{"messages": []}', b"\xff", b'{"model": "\xff"}', b"[" * 100_000],
)
def test_what_is_no_request_is_refused(body):
    for endpoint in ("chat.completions", "completions"):
        with pytest.raises(InvalidRequest):
            decode_request(endpoint, body)


@pytest.mark.parametrize(
    ("prompt", "kept", "query"),
    [
        ("once", "once", "once"),
        ("", "", ""),
        (["once"], "once", "once"),
        ([1, 2], (1, 2), ""),
        ([[1, 2]], (1, 2), ""),
        (["a", "b"], None, "a"),
        ([[1], [2]], None, ""),
    ],
)
def test_prompts(prompt, kept, query):
    got = text(prompt=prompt)
    assert (got.prompt, got.query) == (kept, query)


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [1, "a"], [-1], [True], {"a": 1}, [None]])
def test_bad_prompts(prompt):
    with pytest.raises(InvalidRequest) as caught:
        text(prompt=prompt)
    assert caught.value.param.startswith("prompt")


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"echo": True}, "echo", "must be left out where a model runs here, got True"),
        ({"echo": [1]}, "echo", "got `array`"),
        ({"suffix": "the end"}, "suffix", "got 'the end'"),
        ({"logit_bias": {"50256": -100}}, "logit_bias", "got {'50256': -100}"),
        ({"best_of": 2}, "best_of", "must be at most n, 1, where a model runs here, got 2"),
        ({"best_of": 4, "n": 3}, "best_of", "at most n, 3"),
    ],
)
def test_what_changes_an_answer_and_no_model_here_does_is_noted(fields, param, says):
    (objection,) = text(**fields).objections
    assert objection[0] == param
    assert says in objection[1]


def test_what_changes_no_answer_meets_no_objection():
    assert text(echo=False, suffix="", logit_bias={}, best_of=1).objections == ()
    assert text(echo=None, suffix=None, logit_bias=None, best_of=None).objections == ()
    assert text(best_of=3, n=3).objections == ()
    assert text(stop=["a", "b", "c", "d", "e"]).objections == (), "models that run here take any number"
    assert [param for param, _ in chat(logit_bias={"1": 5}).objections] == ["logit_bias"]


@pytest.mark.parametrize(("prompt", "query"), [(None, ""), ("", ""), ([], ""), ("and then?", "and then?")])
def test_vectors_may_stand_in_for_a_prompt(prompt, query):
    got = text(prompt=prompt, prompt_embeds="AAAA")
    assert (got.prompt, got.query) == (None, query)
    assert got.objections == (("prompt_embeds", "prompt_embeds must be left out where a model runs here"),)
    with pytest.raises(InvalidRequest):
        text(prompt=None, prompt_embeds=None)


def test_completion_limits():
    assert text(max_tokens=0, logprobs=5).sampling == Sampling(max_tokens=0, logprobs=5)
    assert text(logprobs=21).objections == (("logprobs", "logprobs must be between 0 and 20, got 21"),)


# --- the model's name

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["model", '"model": "m"', "\\", "é{[,:"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "a", '"model"', "mod\\el"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.sampled_from(["a", "b", 'x"model"']), JSON, max_size=2),
    after=st.dictionaries(st.sampled_from(["c", "d"]), JSON, max_size=2),
    old=NAMES,
    new=NAMES,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_only_the_models_value_changes(before, after, old, new, ascii_only, indent):
    def dump(value):
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()

    body = dump({**before, "model": old, **after})
    got = replace_model(body, new)
    assert json.loads(got) == {**before, "model": new, **after}
    if old == new:
        assert got is body
    else:  # byte-identical but for the value: the same splice done the slow way
        mark = "\x00unique\x00"
        left, right = dump({**before, "model": mark, **after}).split(dump(mark))
        assert got.startswith(left)
        assert got.endswith(right)
        assert json.loads(got[len(left) : len(got) - len(right)]) == new


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","model":"b"}', b'{"model":"z","model":"z"}'),
        (b'{"metadata":{"model":"a"},"mod\\u0065l":"a"}', b'{"metadata":{"model":"a"},"mod\\u0065l":"z"}'),
        (b'{"mod\\u0065l":null}', b'{"mod\\u0065l":"z"}'),
        (b'{"model" \t:\r\n null }', b'{"model" \t:\r\n "z" }'),
        (b"{}", b'{"model":"z"}'),
        (b' { "x": 1}', b' {"model":"z", "x": 1}'),
        (b'{"x": {"model": "a"}}', b'{"model":"z","x": {"model": "a"}}'),
    ],
)
def test_odd_bodies(body, expected):
    assert replace_model(body, "z") == expected


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model": 5}', b'{"model"', b"[" * 100_000])
def test_bodies_without_a_name_to_replace(body):
    with pytest.raises(InvalidRequest):
        replace_model(body, "z")


def test_a_large_body_is_spliced_quickly():
    body = json.dumps({"a": [{"model": 'x\\"\n' * 200_000}], "model": "m"}).encode()
    assert json.loads(replace_model(body, "z"))["model"] == "z"


@pytest.mark.parametrize("name", ["", "a\nWARNING forged", "a\x1b[2J", "x" * 257, "\u2028"])
def test_a_models_name_is_short_and_printable(name):
    """Behind a wildcard it is whatever the client wrote, and stands in headers, logs and records."""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}], "prompt": "x"}).encode()
    for decode in (
        read_model,
        lambda one: decode_request("chat.completions", one),
        lambda one: decode_request("completions", one),
    ):
        with pytest.raises(InvalidRequest) as caught:
            decode(body)
        assert caught.value.param == "model"
    assert read_model(b'{"input": [1e999, {"model": "y"}], "model": "m\xc3\xb6"}') == "m\u00f6"
