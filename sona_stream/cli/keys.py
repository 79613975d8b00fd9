"""`sona-stream keys hash`: what stands in `sona.keys` instead of the key."""

from __future__ import annotations

import secrets

import click

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Hash an API key for the configuration."""


@keys.command("hash")
@click.option("--new", is_flag=True, help="Make a new random key, and print an entry of `sona.keys` for it.")
def hash_(new: bool) -> None:
    """Print the hash of a key: the `key` of an entry of `sona.keys`. The key is read without echo.

    With --new the key itself is shown once, on standard error; the entry alone is standard output.
    """
    from ..config.load import hash_key

    if new:
        key = f"sk-sona-{secrets.token_urlsafe(24)}"
        click.echo(f"the key, for whoever is to use it (it is shown only now): {key}", err=True)
        click.echo("the entry, to be pasted under `keys:` of `sona:` (role admin: /v1/sona/*, too):", err=True)
        click.echo(f"- key: {hash_key(key)}\n  tenant: default\n  roles: [use, teach]")
        return
    key = click.prompt("Key", hide_input=True, err=True)
    click.echo(hash_key(key))
