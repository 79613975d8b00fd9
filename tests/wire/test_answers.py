"""Encoding against the official client's own types; parsing of every dialect; and both against each other."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sona_stream.errors import InvalidRequest, NotFound, SonaError, UpstreamProtocolError
from sona_stream.events import Delta, Finish, Head, Piece, Request, Sampling, Usage
from sona_stream.wire import (
    AnswerParser,
    BodyEncoder,
    SseDecoder,
    StreamEncoder,
    encode_error,
    encode_error_event,
    encode_model,
    encode_models,
)

USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def asked(endpoint="chat.completions", **fields):
    return Request(id="r1", endpoint=endpoint, model="m", body=b"{}", **fields)


def stream(request, pieces, finish):
    encoder = StreamEncoder(request, Head(model="local"), created=5)
    return b"".join(encoder.delta(Delta(pieces=(piece,))) for piece in pieces) + encoder.finish(finish)


def body(request, pieces, finish):
    encoder = BodyEncoder(request, Head(model="local"), created=5)
    for piece in pieces:
        encoder.delta(Delta(pieces=(piece,)))
    return encoder.finish(finish)


def events(raw):
    return SseDecoder().feed(raw)


def strict(kind, data):
    """The official type, without its leniency about missing or wrong fields."""
    return kind.model_validate_json(data, strict=True)


def test_chat_stream_is_what_the_official_client_expects():
    pieces = [Piece(reasoning="hm"), Piece(text="a"), Piece(text="b")]
    *chunks, done = events(stream(asked(), pieces, Finish(reason="length", usage=USAGE)))
    assert done == b"[DONE]"
    parsed = [strict(ChatCompletionChunk, chunk) for chunk in chunks]
    assert {(one.id, one.created, one.model, one.object) for one in parsed} == {
        ("chatcmpl-r1", 5, "local", "chat.completion.chunk")
    }
    deltas = [one.choices[0].delta for one in parsed]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [delta.role for delta in deltas[1:]] == [None] * 4
    assert [delta.content for delta in deltas[1:]] == [None, "a", "b", None]
    assert deltas[1].reasoning_content == "hm"
    assert [one.choices[0].finish_reason for one in parsed] == [None] * 4 + ["length"]
    assert all("usage" not in json.loads(chunk) for chunk in chunks)


def test_usage_chunk_only_when_asked_and_without_choices():
    raw = stream(asked(include_usage=True), [Piece(text="a")], Finish(reason="stop", usage=USAGE))
    *chunks, last, done = events(raw)
    assert all(json.loads(chunk)["usage"] is None for chunk in chunks)
    assert json.loads(last)["choices"] == []
    assert json.loads(last)["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert done == b"[DONE]"


def test_several_choices_have_their_own_roles_and_ends():
    pieces = [Piece(text="a"), Piece(index=1, text="b"), Piece(index=1, text="", finish_reason="stop")]
    parsed = [
        json.loads(one)["choices"][0]
        for one in events(stream(asked(sampling=Sampling(n=2)), pieces, Finish(reason="length")))[:-1]
    ]
    for index, text, reason in ((0, "a", "length"), (1, "b", "stop")):
        mine = [one for one in parsed if one["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content") or "" for one in mine) == text
        assert [one["finish_reason"] for one in mine if one["finish_reason"]] == [reason]


LOGPROBS = Piece(text="Hi", logprobs=(-0.5,), top_logprobs=({"Ho": -1.0, "Hi": -0.5, "X": -3.0},))


def test_chat_logprobs_when_asked():
    request = asked(sampling=Sampling(logprobs=2))
    chunk = strict(ChatCompletionChunk, events(stream(request, [LOGPROBS], Finish()))[1])
    (token,) = chunk.choices[0].logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("Hi", -0.5, [72, 105])
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("Hi", -0.5), ("Ho", -1.0)]
    whole = strict(ChatCompletion, body(request, [LOGPROBS], Finish(reason="stop")))
    assert whole.choices[0].logprobs.content == [token]
    plain = events(stream(asked(), [LOGPROBS], Finish()))
    assert all(json.loads(one)["choices"][0]["logprobs"] is None for one in plain[:-1])


def test_text_stream_and_body():
    request = asked("completions", sampling=Sampling(logprobs=1))
    pieces = [LOGPROBS, Piece(text="!", logprobs=(-0.1,), top_logprobs=({"!": -0.1},))]
    *chunks, _ = events(stream(request, pieces, Finish(reason="stop")))
    parsed = [
        strict(Completion, chunk.replace(b'"finish_reason":null', b'"finish_reason":"stop"')) for chunk in chunks
    ]
    assert [one.choices[0].text for one in parsed] == ["Hi", "!", ""]
    assert [one.choices[0].logprobs.text_offset for one in parsed[:2]] == [[0], [2]]
    whole = strict(Completion, body(request, pieces, Finish(reason="stop", usage=USAGE)))
    assert (whole.id, whole.choices[0].text, whole.usage.total_tokens) == ("cmpl-r1", "Hi!", 5)
    logprobs = whole.choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["Hi", "!"], [-0.5, -0.1], [0, 2])
    assert logprobs.top_logprobs == [{"Hi": -0.5}, {"!": -0.1}]


def test_chat_body():
    whole = strict(
        ChatCompletion, body(asked(), [Piece(text="a"), Piece(text="b")], Finish(reason="length", usage=USAGE))
    )
    choice = whole.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "ab", "length")
    assert (whole.model, whole.object, whole.usage.completion_tokens) == ("local", "chat.completion", 2)


def test_an_empty_answer_still_ends():
    assert json.loads(body(asked(), [], Finish()))["choices"][0]["message"]["content"] == ""
    assert events(stream(asked(), [], Finish()))[-1] == b"[DONE]"


def test_raw_bytes_pass_and_a_changed_event_is_encoded_among_them():
    encoder = StreamEncoder(asked(), Head(model="up"), created=5)
    assert encoder.delta(Delta(raw=b"data: 1\n\n", pieces=(Piece(text="a"),))) == b"data: 1\n\n"
    changed = encoder.delta(Delta(pieces=(Piece(text="b"),)))
    assert b'"content":"b"' in changed
    assert encoder.finish(Finish(reason="stop", raw=b"")) == b""


def test_a_changed_body_is_encoded_whole():
    def run(*deltas):
        encoder = BodyEncoder(asked(), Head(model="up"), created=5)
        for delta in deltas:
            encoder.delta(delta)
        return encoder.finish(Finish(reason="stop", raw=b""))

    first, second = Delta(raw=b'{"a":'), Delta(raw=b"1}", pieces=(Piece(text="x"),))
    assert run(first, second) == b'{"a":1}'
    changed = json.loads(run(first, Delta(pieces=(Piece(text="y"),))))
    assert changed["choices"][0]["message"]["content"] == "y"


def test_errors():
    told = json.loads(encode_error(InvalidRequest("n must be", param="n")))
    assert told == {
        "error": {
            "message": "n must be",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request_error",
        }
    }
    assert json.loads(encode_error(NotFound("x")))["error"]["type"] == "not_found_error"
    assert json.loads(encode_error(SonaError("\ud800")))["error"]["message"] == "?"
    (event,) = events(encode_error_event(UpstreamProtocolError("line\nbreak")))
    assert json.loads(event)["error"]["code"] == "upstream_protocol_error"


def test_models():
    listed = json.loads(encode_models(["a", "b"], created=1))
    assert [one["id"] for one in listed["data"]] == ["a", "b"]
    assert listed["data"][0] == json.loads(encode_model("a", created=1))


# --- parsing


def chunk(choice=None, **fields):
    return json.dumps({"id": "c", "choices": [choice] if choice is not None else [], **fields}).encode()


@pytest.mark.parametrize(
    ("choice", "piece"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, None),
        ({"index": 0, "delta": {"content": "a"}}, Piece(text="a")),
        (
            {"index": 2, "delta": {"content": "a"}, "finish_reason": "stop"},
            Piece(index=2, text="a", finish_reason="stop"),
        ),
        ({"delta": {"reasoning_content": "r"}}, Piece(reasoning="r")),
        ({"delta": {"reasoning": "r", "content": None}}, Piece(reasoning="r")),
        (
            {"delta": {"content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": []}]}},
            Piece(text="a"),
        ),
        ({"delta": {"tool_calls": [{"index": 0}]}}, None),
        ({"delta": {"content": 5}}, None),
        ({"delta": {"content": "a"}, "token_ids": [1, 2]}, Piece(text="a", token_ids=(1, 2))),
        ({"delta": {"content": "a"}, "token_ids": "x", "logprobs": 5}, Piece(text="a")),
        ({"text": "a", "finish_reason": ""}, Piece(text="a")),
        (
            {"text": "a", "logprobs": {"token_logprobs": [None, -1.0], "top_logprobs": None}},
            Piece(text="a", logprobs=(-1.0,)),
        ),
        (
            {"text": "a", "logprobs": {"token_logprobs": [-1], "top_logprobs": [{"a": -1}]}},
            Piece(text="a", logprobs=(-1.0,), top_logprobs=({"a": -1.0},)),
        ),
        (
            {"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"},
            Piece(text="a", finish_reason="stop"),
        ),
    ],
)
def test_dialects(choice, piece):
    parser = AnswerParser()
    assert parser.events([chunk(choice)]) == (() if piece is None else (piece,))
    assert not parser.broken


def test_state_of_an_answer():
    parser = AnswerParser()
    parser.events(
        [
            chunk({"index": 0, "delta": {"content": "a"}}),
            chunk({"index": 1, "delta": {}, "finish_reason": "length"}),
        ]
    )
    assert (parser.completion_id, parser.reason, parser.all_finished) == ("c", "length", False)
    parser.events([chunk({"index": 0, "delta": {}, "finish_reason": "stop"})])
    assert (parser.reason, parser.all_finished, parser.done) == ("stop", True, False)
    parser.events([chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "vendor": {}}), b"[DONE]"])
    assert (parser.usage, parser.done, parser.error) == (USAGE, True, None)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b'{"error": {"message": "x", "code": 429}}', 429),
        (b'{"error": {"message": "x", "code": "rate"}, "status": 503}', 503),
        (b'{"error": "plain"}', None),
        (b'{"object": "error", "message": "old vllm", "code": 400}', 400),
    ],
)
def test_error_events(data, status):
    parser = AnswerParser()
    assert parser.events([data]) == ()
    assert (parser.error, parser.error_status(), parser.data_events) == (data, status, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"not json",
        b'{"choices": 5}',
        b'{"choices":[{"logprobs":{"token_logprobs":[1%s]}}]}' % (b"0" * 400),
        b'{"choices": [{"index": "a"}]}',
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_ends_reading_only(data):
    parser = AnswerParser()
    assert parser.events(
        [chunk({"delta": {"content": "a"}}), data, chunk({"delta": {"content": "b"}}), b"[DONE]"]
    ) == (Piece(text="a"),)
    assert (parser.broken, parser.done) == (True, True)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
PIECES = st.lists(
    st.builds(
        Piece,
        index=st.integers(0, 1),
        text=TEXTS,
        reasoning=TEXTS,
        logprobs=st.just(()) | st.tuples(st.floats(-20, 0)),
    ),
    max_size=6,
)


@given(pieces=PIECES, spots=st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_what_is_encoded_is_parsed_again_under_any_cut(pieces, spots):
    raw = stream(asked(sampling=Sampling(n=2, logprobs=0)), pieces, Finish(reason="stop"))
    parser, decoder, got, at = AnswerParser(), SseDecoder(), [], 0
    for spot in [*spots, len(raw)]:
        got += parser.events(decoder.feed(raw[at : at + spot]))
        at += spot
    assert parser.done
    assert parser.all_finished
    for index in (0, 1):
        sent, read = ([p for p in some if p.index == index] for some in (pieces, got))
        for field in ("text", "reasoning"):
            assert "".join(getattr(p, field) for p in sent) == "".join(getattr(p, field) for p in read)
        assert [v for p in sent for v in p.logprobs] == [v for p in read for v in p.logprobs]


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(data):
    parser = AnswerParser()
    parser.events(SseDecoder().feed(b"data: " + data + b"\n\n"))
    parser.body(data)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "delta",
                        "message",
                        "logprobs",
                        "content",
                        "top_logprobs",
                        "token",
                        "logprob",
                        "usage",
                        "token_ids",
                        "error",
                        "text",
                        "token_logprobs",
                        "index",
                        "prompt_tokens",
                    ]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=20,
    )
)
def test_no_json_breaks_the_reader(value):
    parser = AnswerParser()
    parser.events([json.dumps(value).encode()])
    parser.error_status()
