"""`sona-stream memory list | promote | forget`: what was said word for word, and who has it."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

import click

from .connection import Connection, server_options

__all__ = ["memory"]


@click.group()
def memory() -> None:
    """Look at remembered corrections, give one to more people, or delete some. Needs the running server."""


@memory.command("list")
@server_options
@click.option("--tenant", help="Of this tenant only.")
@click.option("--person", help="Of this person only, as the list names people: key:ID or user:NAME.")
@click.option("--scope", type=click.Choice(["person", "tenant", "global"]), help="Of this scope only.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
def list_(
    base_url: str, api_key: str | None, tenant: str | None, person: str | None, scope: str | None, limit: int
) -> None:
    """All episodes, newest first; what was said is there only where `sona.storage` is text."""
    asked = {"tenant": tenant, "person": person, "scope": scope, "limit": limit}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    rows = Connection(base_url, api_key).call("GET", f"/v1/sona/memory?{query}")["data"]
    if not rows:
        click.echo("nothing is remembered")
    for row in rows:
        click.echo(_line(row))


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
@click.option("--tenant", help="All of this tenant, or of a person of it.")
@click.option("--person", help="With --tenant: all of this person.")
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


def _line(row: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
    mark = "*" if row["used"] else " "
    said = "" if row["question"] is None else f"  {row['question'][:60]!r} -> {(row['answer'] or '')[:60]!r}"
    return f"{mark} {row['key']}  {when}  {row['scope']:<6}  {row['tenant']}/{row['person']}  {row['kind']}{said}"
