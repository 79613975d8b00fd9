"""`sona-stream memory list`: what is used, what is not, and why not."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sona_stream.app.views import episode_view
from sona_stream.cli.memory import memory
from sona_stream.episodes import Episode, EpisodeText, Question


def episode(**changes):
    values = {
        "key": "1-00000000000000ab",
        "number": 1,
        "model": "m",
        "fingerprint": "fp",
        "scope": "person",
        "tenant": "acme",
        "user": "ann",
        "key_id": "k1",
        "request_id": "req-1",
        "feedback_id": "fb-1",
        "kind": "correction",
        "tokens": 3,
        "answer_tokens": 3,
        "nbytes": 99,
        "created_at": 1e9,
        "stored_at": 1e9,
    }
    return Episode(**(values | changes))


TEXT = {"text": EpisodeText(answer="Lyon", body=b"{}"), "question": Question("Capital?")}


@pytest.fixture
def listed(monkeypatch):
    """``listed(episode, fits=...)``: the command's output."""

    def run(one, *arguments, fits=True):
        row = json.loads(json.dumps(episode_view(one, fits=fits, expires_at=2e9)))
        monkeypatch.setattr("sona_stream.cli.memory.Connection.call", lambda *asked: {"data": [row]})
        ran = CliRunner().invoke(memory, ["list", *arguments], catch_exceptions=False)
        assert ran.exit_code == 0
        return ran.output

    return run


@pytest.mark.parametrize(
    ("changes", "fits", "mark", "told"),
    [
        ({}, True, "*", "correction\n"),
        ({}, None, "*", "correction\n"),
        (TEXT, True, "*", "correction  'Capital?' -> 'Lyon'\n"),
        ({"superseded_by": 2}, True, " ", "correction\n"),
        (TEXT, False, " ", "(made for another model; it is made anew from its text)\n"),
        (
            {"kind": "accepted"},
            False,
            " ",
            "(made for another model, and its text is not kept: it is not used, and goes on 2033-05-18)\n",
        ),
    ],
)
def test_a_line_says_whether_it_is_used(listed, changes, fits, mark, told):
    line = listed(episode(**changes), fits=fits)
    assert line.startswith(f"{mark} 1-00000000000000ab  2001-09-0")
    assert "acme/user:ann" in line
    assert line.endswith(told)


def test_as_json_it_is_all_that_is_known(listed):
    row = json.loads(listed(episode(promoted_by="k9", promoted_at=5.0, uses=4), "--json"))
    assert (row["key"], row["request_id"], row["feedback_id"]) == ("1-00000000000000ab", "req-1", "fb-1")
    assert (row["user"], row["key_id"], row["person"], row["scope"]) == ("ann", "k1", "user:ann", "person")
    assert (row["created_at"], row["expires_at"], row["promoted_by"], row["promoted_at"]) == (1e9, 2e9, "k9", 5.0)
    assert (row["used"], row["uses"], row["fits"], row["renewable"]) == (True, 4, True, False)
