"""`sona-stream memory export`: every episode once, also of a memory that changes between two pages."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sona_stream.cli.memory import memory


def line(number, **changes):
    row = {"number": number, "key": f"{number:x}-00", "tenant": "acme", "kind": "correction"}
    row |= {"request_id": f"r{number}", "feedback_id": f"f{number}", "stored_at": 100.0 + number}
    return json.dumps(row | changes).encode() + b"\n"


@pytest.fixture
def export(monkeypatch):
    """``export(page, page...)``: the run, of a server that gives these pages."""

    def run(*pages):
        left = list(pages)

        def fetch(connection, path):
            more = {"x-sona-next": "7"} if len(left) > 1 else {}
            return left.pop(0), more

        monkeypatch.setattr("sona_stream.cli.memory.Connection.fetch", fetch)
        return CliRunner().invoke(memory, ["export"])

    return run


def test_what_is_made_anew_between_two_pages_is_written_once(export):
    again = line(5, request_id="r1", feedback_id="f1", stored_at=101.0)
    ran = export(line(1) + line(2), line(3) + line(4) + again)
    assert ran.exit_code == 0
    assert [json.loads(one)["number"] for one in ran.stdout.splitlines()] == [1, 2, 3, 4]
    assert ran.stderr == "4 episodes\n"


def test_what_was_said_twice_is_written_twice(export):
    ran = export(line(1) + line(2, request_id="r1"))
    assert (len(ran.stdout.splitlines()), ran.stderr) == (2, "2 episodes\n")


def test_nothing_is_an_empty_file(export):
    ran = export(b"")
    assert (ran.stdout, ran.stderr) == ("", "0 episodes\n")


@pytest.mark.parametrize("said", [b"<html>\n", b"[]\n", b'{"number": 1}\n'])
def test_another_program_is_told(export, said):
    ran = export(said)
    assert ran.exit_code == 1
    assert "does not export episodes" in ran.stderr
