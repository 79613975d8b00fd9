"""What a host holds of episodes, and for how long."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream.errors import HostError
from sona_stream.lora import HiddenSpace
from sona_stream_adapters.episodes import EpisodeStore

D, V, T = 8, 30, 4
ONE = T * (2 * D + 8)
SPACE = HiddenSpace(np.zeros(D, np.float32), np.ones(D, np.float32), "v1")


def store(episodes=3):
    return EpisodeStore(max_bytes=episodes * ONE, limit="SOME_LIMIT", hidden_dim=D, vocab_size=V)


def answer(seed=0, tokens=T):
    r = np.random.default_rng(seed)
    return r.standard_normal((tokens, D)).astype(np.float32), r.integers(0, V, tokens).astype(np.int32)


def test_the_least_recently_used_goes_first_and_is_named():
    here = store()
    for i in range(3):
        assert here.put(f"e{i}", *answer(i), SPACE) == []
    assert here.activate(["e0", "none"], [1.0, 1.0]) is not None
    assert here.holds("e1", answer(1)[1], SPACE)
    assert here.put("e3", *answer(3), SPACE) == ["e2"]
    assert (len(here), here.nbytes, here.evictions) == (3, 3 * ONE, 1)
    assert here.put("e4", *answer(4, tokens=2 * T), SPACE) == ["e0", "e1"]
    assert here.drop("e3")
    assert not here.drop("e3")
    assert here.nbytes == 2 * ONE
    here.clear()
    assert (len(here), here.nbytes) == (0, 0)


def test_what_is_there_is_known_by_key_tokens_and_space():
    here = store()
    hidden, ids = answer()
    here.put("e", hidden, ids, SPACE)
    assert here.holds("e", ids, SPACE)
    assert not here.holds("f", ids, SPACE)
    assert not here.holds("e", ids[:-1], SPACE)
    assert not here.holds("e", ids, HiddenSpace(SPACE.mean, SPACE.spread, "v2"))


def test_what_a_request_draws_on_is_made_anew_only_when_it_changes():
    here = store()
    here.put("a", *answer(0), SPACE)
    first = here.activate(["a", "b"], [1.0, 0.5])
    here.put("other", *answer(1), SPACE)
    assert here.activate(["a", "b"], [1.0, 0.5], first) is first
    here.put("b", *answer(2), SPACE)
    both = here.activate(["a", "b"], [1.0, 0.5], first)
    assert both is not first
    assert both.token_ids.tolist() == [*answer(0)[1].tolist(), *answer(2)[1].tolist()]
    assert len(both.parts) == 1  # one space, one product
    here.drop("a")
    assert here.activate(["a"], [1.0], both) is None
    assert here.activate(["b"], [0.0]) is None
    assert here.activate(["b"], [float("nan")]) is None


def test_an_answer_under_way_keeps_what_had_to_make_room():
    here = store(2)
    here.put("a", *answer(0), SPACE)
    here.put("b", *answer(1), SPACE)
    active = here.activate(["a", "b"], [1.0, 0.5])
    assert here.put("c", *answer(2), SPACE) == ["a"]
    assert here.put("d", *answer(3), SPACE) == ["b"]
    assert here.activate(["a", "b"], [1.0, 0.5], active) is active
    assert here.activate(["a", "b"], [1.0, 0.5]) is None  # who comes later finds nothing
    assert "a" not in here
    assert not here.holds("a", answer(0)[1], SPACE)
    before = here.generation
    assert here.drop("a")  # forgotten: it decides nothing any more, not even here
    assert here.generation > before
    assert not here.drop("a")
    active = here.activate(["a", "b"], [1.0, 0.5], active)
    assert active.token_ids.tolist() == answer(1)[1].tolist()
    here.put("b", *answer(4), SPACE)  # what is put again counts for all
    active = here.activate(["a", "b"], [1.0, 0.5], active)
    assert active.token_ids.tolist() == answer(4)[1].tolist()
    here.clear()
    assert here.activate(["b"], [0.5], active) is None


def test_what_answers_hold_beside_the_store_is_counted_until_they_end():
    here = store(1)
    here.put("a", *answer(0), SPACE)
    assert here.held_bytes == 0
    first = here.activate(["a"], [1.0])
    own = T * (4 * D + 8 * 5 + 4)  # states in float32, tokens with those before them, gates
    assert (here.nbytes, here.held_bytes) == (ONE, own)
    second = here.activate(["a"], [0.5], shares=[0.5])
    assert here.held_bytes == 2 * own + 4 * T
    here.put("b", *answer(1), SPACE)
    assert (here.nbytes, here.held_bytes) == (ONE, 2 * own + 4 * T + ONE)  # the evicted one itself, once
    del second
    assert here.held_bytes == own + ONE
    del first
    assert here.held_bytes == 0


@pytest.mark.parametrize(
    ("hidden", "ids", "space", "words"),
    [
        (np.ones((2, 3)), [1, 2], None, r"shape \(2, 3\), expected \(tokens, 8\)"),
        (np.ones((0, D)), [], None, "expected"),
        (np.ones(D), [1], None, "expected"),
        (np.ones((2, D)), [1], None, "2 token_ids below 30"),
        (np.ones((1, D)), [V], None, "1 token_ids below 30"),
        (np.ones((1, D)), [-1], None, "1 token_ids below 30"),
        (np.full((1, D), np.nan), [1], None, "finite"),
        (np.ones((1, D)), [1], HiddenSpace(np.ones(3, np.float32), np.ones(D, np.float32), ""), "8 finite numbers"),
        (np.ones((99, D)), [1] * 99, None, "SOME_LIMIT allows 288"),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(hidden, ids, space, words):
    here = store()
    here.put("kept", *answer(), SPACE)
    with pytest.raises(HostError, match=words):
        here.put("kept", np.asarray(hidden, np.float32), np.asarray(ids, np.int32), space)
    assert here.holds("kept", answer()[1], SPACE)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pda"), st.integers(0, 5), st.integers(1, 6)), max_size=40))
def test_bytes_are_counted_whatever_happens(steps):
    here, known = store(), {}
    for what, number, tokens in steps:
        key = f"e{number}"
        if what == "p":
            for gone in here.put(key, *answer(number, tokens), SPACE):
                known.pop(gone, None)
            known[key] = tokens
        elif what == "d":
            assert here.drop(key) == (known.pop(key, None) is not None)
        else:
            active = here.activate([key], [1.0])
            assert (active is not None) == (key in known)
            del active  # else it would keep what it found
        assert here.nbytes == sum(known.values()) * (2 * D + 8) <= 3 * ONE


def test_two_threads():
    here, errors = store(2), []
    over = threading.Event()

    def read():
        while not over.is_set():
            try:
                active = here.activate([f"e{i}" for i in range(5)], [1.0] * 5)
                if active is not None:
                    active.similarities(torch.zeros(1, D))
            except Exception as error:
                errors.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(300):
        here.put(f"e{i % 5}", *answer(i), SPACE)
        here.drop(f"e{(i + 2) % 5}")
    over.set()
    reader.join()
    assert errors == []
