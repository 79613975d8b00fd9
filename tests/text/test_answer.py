"""What a client gets of an answer, token by token, against the text as a whole."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.errors import InvalidRequest, NotReady, UpstreamProtocolError
from sona_stream.events import Delta, Finish, Head, Piece, Request, Sampling, Usage
from sona_stream_adapters.text import AnswerText, check_sampling, events_of, token_names


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


def written(tokenizer, ids, *, stop=(), max_tokens=10_000):
    answer = AnswerText(tokenizer, [], stop=stop, eos_ids=frozenset({0}), max_tokens=max_tokens)
    text, reason = "", None
    for token in ids:
        shown, reason = answer.take(token)
        text += shown
        if reason is not None:
            break
    return answer, text, reason


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="the quickbrown fox漢字naïve↔", min_size=1, max_size=30),
    stop=st.text("the qu", min_size=1, max_size=3),
)
def test_a_stop_string_is_never_shown(tokenizer, text, stop):
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], 0]
    answer, shown, reason = written(tokenizer, ids, stop=(stop,))
    whole = tokenizer.decode(ids[:-1])
    at = whole.find(stop)
    assert shown == (whole if at < 0 else whole[:at])
    assert reason == "stop"
    assert answer.stopped == (at >= 0)
    assert answer.produced <= len(ids)


def test_every_one_of_many_stop_strings_stops(tokenizer):
    ids = tokenizer("the quick brown fox", add_special_tokens=False)["input_ids"]
    _, shown, reason = written(tokenizer, ids, stop=("1", "2", "3", "4", "5", "fox"))
    assert (shown, reason) == ("the quick brown ", "stop")


def test_the_limit_shows_what_was_withheld(tokenizer):
    ids = tokenizer("the quick")["input_ids"]
    answer, shown, reason = written(tokenizer, ids, stop=("quick fox",), max_tokens=len(ids))
    assert (shown, reason, answer.stopped) == ("the quick", "length", False)


def test_tokens_without_a_text_have_names(tokenizer):
    names = token_names(tokenizer, [(0, -1.0), (len(tokenizer), -2.0), (tokenizer("the")["input_ids"][0], -3.0)])
    assert list(names) == [
        "<|end|>",
        f"token_id:{len(tokenizer)}",
        tokenizer.decode(tokenizer("the")["input_ids"][:1]),
    ]


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(n=5), "n"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(top_p=1.5), "top_p"),
        (Sampling(presence_penalty=float("nan")), "presence_penalty"),
    ],
)
def test_what_cannot_be_sampled_is_named(sampling, param):
    request = Request(id="r", endpoint="completions", model="m", body=b"{}", sampling=sampling)
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(request, name="m", max_choices=4)
    assert caught.value.param == param


def test_what_the_reference_has_against_a_request_is_raised_where_it_is_sampled():
    said = (("max_tokens", "max_tokens must be between 1 and 9, got -1"), ("n", "n is odd"))
    request = Request(id="r", endpoint="completions", model="m", body=b"{}", objections=said)
    with pytest.raises(InvalidRequest, match="must be between 1 and 9, got -1") as caught:
        check_sampling(request, name="m", max_choices=4)
    assert caught.value.param == "max_tokens"


async def events(*items):
    queue = asyncio.Queue()
    for item in items:
        queue.put_nowait(item)
    return [event async for event in events_of(Head(model="m"), queue, "cmpl-1")]


async def test_pieces_that_wait_come_together_and_the_usage_ends():
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    head, delta, finish = await events(Piece(text="a"), Piece(text="b", finish_reason="stop"), usage)
    assert head == Head(model="m")
    assert [piece.text for piece in delta.pieces] == ["a", "b"]
    assert finish == Finish(reason="stop", usage=usage, completion_id="cmpl-1")
    assert isinstance(delta, Delta)


async def test_errors_come_as_they_are_or_as_a_broken_answer():
    with pytest.raises(NotReady):
        await events(NotReady("away"))
    with pytest.raises(UpstreamProtocolError, match="m failed: boom"):
        await events(Piece(text="a"), RuntimeError("boom"))


async def test_the_first_error_ends_the_answer_though_another_choice_goes_on():
    with pytest.raises(UpstreamProtocolError, match="m failed: boom"):
        await asyncio.wait_for(events(RuntimeError("boom"), Piece(index=1, text="a")), 5)
