"""`sona-stream freeze | thaw`: stop and resume the publishing of adapter versions on a running server."""

from __future__ import annotations

import click

from .connection import Connection, server_options

__all__ = ["freeze", "thaw"]


@click.command()
@server_options
def freeze(base_url: str, api_key: str | None) -> None:
    """Stop publishing new adapter versions; answers keep the versions they have."""
    Connection(base_url, api_key).call("POST", "/v1/sona/freeze")
    click.echo("frozen: feedback is still kept, new versions are not served")


@click.command()
@server_options
def thaw(base_url: str, api_key: str | None) -> None:
    """Publish new adapter versions again."""
    Connection(base_url, api_key).call("POST", "/v1/sona/thaw")
    click.echo("thawed: new versions are served again")
