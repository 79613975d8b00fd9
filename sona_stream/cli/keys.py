"""`sona-stream keys hash`: what stands in `sona.keys` instead of the key."""

from __future__ import annotations

import secrets

import click

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Hash an API key for the configuration."""


@keys.command("hash")
@click.option("--new", is_flag=True, help="Make a new random key, and print it beside its hash.")
def hash_(new: bool) -> None:
    """Print the hash of a key, for `sona.keys` in the configuration. The key is read without echo."""
    from ..config.load import hash_key

    if new:
        key = f"sk-sona-{secrets.token_urlsafe(24)}"
        click.echo(f"key:  {key}")
        click.echo(f"hash: {hash_key(key)}")
        return
    key = click.prompt("Key", hide_input=True, err=True)
    click.echo(hash_key(key))
