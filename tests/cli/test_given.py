"""An option with nothing in it, as an unset variable leaves it, is no option less: that would be everybody's."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from sona_stream.cli import main


@pytest.fixture
def ask(monkeypatch):
    """``ask(...)``: exit code and output of a command that must not reach a server."""
    monkeypatch.setattr("sona_stream.cli.connection.Connection._open", lambda *asked: pytest.fail("was sent"))

    def run(*arguments):
        result = CliRunner().invoke(main, list(arguments))
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("--tenant", ("memory", "export")),
        ("--tenant", ("memory", "list")),
        ("--person", ("memory", "list", "--tenant", "acme")),
        ("--tenant", ("memory", "forget", "--yes")),
        ("--person", ("memory", "forget", "--yes", "--tenant", "acme")),
        ("--tenant", ("adapters", "list")),
        ("--tenant", ("adapters", "list", "--state-dir", ".")),
        ("--tenant", ("export", "--out", "x")),
        ("--tenant", ("route", "a question")),
        ("--tenant", ("state", "forget")),
        ("--user", ("state", "forget", "--tenant", "acme")),
    ],
)
def test_it_is_refused_by_its_name(ask, command, option, empty):
    code, said = ask(*command, option, empty)
    assert code == 2
    assert f"Invalid value for '{option}': it is empty; is a variable not set?" in said


def test_an_adapter_without_a_tenant_in_its_key_is_not_known(ask, monkeypatch):
    sent = []

    def call(self, method, path, body=None):
        sent.append(path)
        return {"data": []}

    monkeypatch.setattr("sona_stream.cli.connection.Connection.call", call)
    assert "adapter m//* is not known" in ask("adapters", "show", "m//*", "--base-url", "http://gpu:1")[1]
    assert sent == ["/v1/sona/adapters"]
