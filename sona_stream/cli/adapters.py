"""`sona-stream adapters list | rollback`, through a running server's admin routes."""

from __future__ import annotations

import time

import click

from .connection import Connection, server_options

__all__ = ["adapters"]


@click.group()
def adapters() -> None:
    """List adapter versions of a running server, or roll one back."""


@adapters.command("list")
@server_options
def list_(base_url: str, api_key: str | None) -> None:
    """All versions of all adapters, newest last; the served one is marked with *."""
    rows = Connection(base_url, api_key).call("GET", "/v1/sona/adapters")["data"]
    if not rows:
        click.echo("no adapter has been learned yet")
    for row in rows:
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))
        mark = "*" if row["served"] else " "
        click.echo(f"{mark} {row['key']}@{row['version']}  {made}  {row['status']:<11} {row['reason']}")


@adapters.command()
@click.argument("key")
@click.argument("version", type=click.IntRange(min=0))
@server_options
def rollback(key: str, version: int, base_url: str, api_key: str | None) -> None:
    """Serve VERSION of KEY again (0: the base model)."""
    Connection(base_url, api_key).call("POST", "/v1/sona/adapters/rollback", {"key": key, "version": version})
    click.echo(f"{key} is at version {version}")
