"""`sona-stream memory list | promote | forget | export`: what was said word for word, and who has it."""

from __future__ import annotations

import json
import time
from typing import Any, BinaryIO
from urllib.parse import urlencode

import click

from .connection import Connection, server_options
from .given import not_empty

__all__ = ["memory"]

_STAYS = ("tenant", "request_id", "feedback_id", "kind", "stored_at")


@click.group()
def memory() -> None:
    """Look at remembered answers, give one to more people, or delete or export some. Needs the running server."""


@memory.command("list")
@server_options
@click.option("--tenant", callback=not_empty, help="Of this tenant only.")
@click.option(
    "--person", callback=not_empty, help="Of this person only, as the list names people: key:ID or user:NAME."
)
@click.option("--scope", type=click.Choice(["person", "tenant", "global"]), help="Of this scope only.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="All that is known of each, one JSON object a line.")
def list_(
    base_url: str,
    api_key: str | None,
    tenant: str | None,
    person: str | None,
    scope: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """All episodes, newest first; what was said is there only where `sona.storage` is text.

    Those marked with a star are used. One that a newer answer stands for is not, nor one that was made for another
    model: the server makes it anew if its text is kept.
    """
    asked = {"tenant": tenant, "person": person, "scope": scope, "limit": limit}
    rows = Connection(base_url, api_key).call("GET", f"/v1/sona/memory?{_query(asked)}")["data"]
    if not rows and not as_json:
        click.echo("nothing is remembered")
    for row in rows:
        click.echo(json.dumps(row) if as_json else _line(row))


@memory.command()
@click.argument("key")
@click.option("--scope", type=click.Choice(["tenant", "global"]), default="tenant", show_default=True)
@server_options
def promote(key: str, scope: str, base_url: str, api_key: str | None) -> None:
    """Let everybody of the tenant, or every tenant (global), have the episode KEY."""
    row = Connection(base_url, api_key).call("POST", "/v1/sona/memory/promote", {"key": key, "scope": scope})
    click.echo(_line(row))


@memory.command()
@click.argument("keys", nargs=-1)
@click.option("--tenant", callback=not_empty, help="All of this tenant, or of a person of it.")
@click.option("--person", callback=not_empty, help="With --tenant: all of this person.")
@click.confirmation_option(prompt="What is forgotten does not come back. Go on?")
@server_options
def forget(
    keys: tuple[str, ...], tenant: str | None, person: str | None, base_url: str, api_key: str | None
) -> None:
    """Delete the episodes KEYS, or all of --tenant, or of a --person of it."""
    if not keys and tenant is None:
        raise click.UsageError("name the episodes' keys, or --tenant")
    body = {"keys": list(keys) or None, "tenant": tenant, "person": person}
    told = {name: value for name, value in body.items() if value is not None}
    gone = Connection(base_url, api_key).call("POST", "/v1/sona/memory/forget", told)["forgotten"]
    click.echo(f"{len(gone)} forgotten")


@memory.command()
@click.option("--tenant", callback=not_empty, help="Of this tenant only.")
@click.option(
    "--out", type=click.File("wb"), default="-", show_default=True, help="File to write; -: standard output."
)
@server_options
def export(tenant: str | None, out: BinaryIO, base_url: str, api_key: str | None) -> None:
    """Write all episodes as JSON lines, the oldest first.

    Where `sona.storage` is text a line holds request, question and answer; else token ids and the question's
    vectors (int8, base64), which is all that is kept.
    """
    connection, after = Connection(base_url, api_key), "0"
    written: set[tuple[Any, ...]] = set()
    while True:
        query = _query({"tenant": tenant, "after": after})
        lines, headers = connection.fetch(f"/v1/sona/memory/export?{query}")
        for line in lines.splitlines(keepends=True):
            known = _known_by(line)
            if known not in written:
                out.write(line)
                written.add(known)
        if "x-sona-next" not in headers:
            break
        after = headers["x-sona-next"]
    click.echo(f"{len(written)} episodes", err=True)


def _known_by(line: bytes) -> tuple[Any, ...]:
    """What stays of an episode when it is made anew for another model, which gives it another number: where that
    happens between two pages, it comes again.
    """
    try:
        row = json.loads(line)
        return tuple(row[name] for name in _STAYS)
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"what answers does not export episodes: it says {line[:60]!r}") from error


def _query(asked: dict[str, Any]) -> str:
    return urlencode({name: value for name, value in asked.items() if value is not None})


def _line(row: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
    mark = "*" if row["used"] and row["fits"] is not False else " "
    said = "" if row["question"] is None else f"  {row['question'][:60]!r} -> {(row['answer'] or '')[:60]!r}"
    line = f"{mark} {row['key']}  {when}  {row['scope']:<6}  {row['tenant']}/{row['person']}  {row['kind']}{said}"
    return f"{line}  ({_unfit(row)})" if row["fits"] is False else line


def _unfit(row: dict[str, Any]) -> str:
    if row["renewable"]:
        return "made for another model; it is made anew from its text"
    until = time.strftime("%Y-%m-%d", time.localtime(row["expires_at"]))
    return f"made for another model, and its text is not kept: it is not used, and goes on {until}"
