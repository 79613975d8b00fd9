"""The form of constrained answers: JSON after its schema, tool calls with their arguments."""

import json

import pytest

from sona_stream.events import CallPart, Delta, Finish, Piece, Request
from sona_stream.quality import FormScorer
from sona_stream.wire import AnswerParser

SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
}
FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "required": ["where"]}}}


def judged(body, *pieces, finish=True, constrained=True):
    request = Request(
        id="r", endpoint="chat.completions", model="m", body=json.dumps(body).encode(), constrained=constrained
    )
    scoring = FormScorer().begin(request)
    for piece in pieces:
        scoring.push(Delta(pieces=(piece,)))
    return scoring.finish(Finish(reason="stop") if finish else None)


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ('{"name": "x", "age": 3}', 1.0),
        ('{"name": "x", "age": 3.0, "tags": ["a", "b"], "more": null}', 1.0),
        ('{"name": "x"}', 0.0),
        ('{"name": "x", "age": "3"}', 0.0),
        ('{"name": "x", "age": true}', 0.0),
        ('{"name": "x", "age": 3, "tags": ["c"]}', 0.0),
        ('{"name": "x", "age": 3', 0.0),
        ("The name is x.", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_after_a_schema(text, worth):
    assert judged(FORMAT, Piece(text=text[:4]), Piece(text=text[4:])) == worth
    assert judged({"guided_json": SCHEMA}, Piece(text=text)) == worth
    assert judged({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Piece(text=text)) == worth


def test_json_without_a_schema():
    body = {"response_format": {"type": "json_object"}}
    assert judged(body, Piece(text='{"anything": 1}')) == 1.0
    assert judged(body, Piece(text="[1]")) == 0.0


def call(arguments, name="look", index=0):
    return Piece(calls=(CallPart(index=index, name=name, arguments=arguments),))


@pytest.mark.parametrize(
    ("pieces", "worth"),
    [
        ([call('{"where": '), call('"here"}', name="")], 1.0),
        ([call('{"where": "here"}'), call('{"where": "there"}', index=1)], 1.0),
        ([call('{"where": "here"}'), call("{}", index=1)], 0.0),
        ([call('{"where": "here"}', name="unknown")], 0.0),
        ([call('{"where": ')], 0.0),
        ([Piece(text="I would look here.")], None),
    ],
)
def test_tool_calls(pieces, worth):
    assert judged({"tools": [TOOL]}, *pieces) == worth
    assert judged({"functions": [TOOL["function"]]}, *pieces) == worth


def test_a_call_that_was_required_must_come():
    assert judged({"tools": [TOOL], "tool_choice": "required"}, Piece(text="no")) == 0.0


def test_nothing_is_said_where_nothing_can_be():
    assert judged(FORMAT, Piece(text="{}"), constrained=False) is None
    assert judged(FORMAT, Piece(text="{}"), finish=False) is None
    assert judged({"guided_regex": "a+"}, Piece(text="b")) is None
    assert judged({"guided_json": "{"}, Piece(text="b")) is None
    assert judged(FORMAT) is None
    assert FormScorer().weight == 0.0


def test_choices_count_each():
    assert judged(FORMAT, Piece(text='{"name": "x", "age": 3}'), Piece(index=1, text="no")) == 0.5


def test_calls_are_read_from_an_upstreams_answer():
    function = {"name": "look", "arguments": '{"wh'}
    events = [
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c", "function": function}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": 'ere": 1}'}}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": "odd"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [3, {"index": "x", "function": "odd"}]}}]},
    ]
    pieces = AnswerParser().events([json.dumps(one).encode() for one in events])
    assert judged({"tools": [TOOL]}, *pieces) == 1.0
    whole = {"choices": [{"index": 0, "message": {"content": None, "function_call": function}}]}
    [piece] = AnswerParser().body(json.dumps(whole).encode())
    assert piece.calls == (CallPart(index=0, name="look", arguments='{"wh'),)
