from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream_adapters.text import Detokenizer, StopStrings


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_increments_add_up_to_the_text_and_never_hold_half_a_character(tokenizer, text):
    detokenizer = Detokenizer(tokenizer, tokenizer("the quick")["input_ids"])
    parts = [detokenizer.push(token) for token in tokenizer(text)["input_ids"]]
    whole = "".join(parts) + detokenizer.flush()
    assert whole == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(1, 255), max_size=60))
def test_any_ids_give_what_decoding_them_at_once_gives(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer, [])
    streamed = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    whole = tokenizer.decode(ids)
    assert streamed.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_special_tokens_are_not_shown(tokenizer):
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(0) + detokenizer.flush() == ""


def naive(text, stops):
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.text(alphabet="abc", max_size=4), max_size=8),
    stops=st.lists(st.text(alphabet="abc", max_size=3), max_size=3),
)
def test_stop_strings_cut_anywhere(parts, stops):
    watcher, out, stopped = StopStrings(stops), "", False
    for part in parts:
        text, stopped = watcher.push(part)
        out += text
        if stopped:
            break
    if not stopped:
        out += watcher.flush()
    # Cut early, a shorter stop may be met before a longer one that starts before it.
    expected = [naive("".join(parts[:n]), stops) for n in range(len(parts) + 1)]
    first = next((each for each in expected if each[1]), expected[-1])
    assert (out, stopped) == first
