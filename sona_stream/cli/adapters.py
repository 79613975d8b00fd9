"""`sona-stream adapters list | show | diff | rollback`: through a running server's admin routes, or, for looking
only, from the state folder when none runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from ..errors import SonaError
from .connection import DEFAULT_BASE_URL, Connection, server_options
from .given import not_empty

__all__ = ["adapters"]

_folder = click.option(
    "--state-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Read this folder of the learned state instead of asking a server.",
)


@click.group()
def adapters() -> None:
    """Look at adapter versions, or roll one back.

    Asks the server at --base-url; when that is the default and none runs there, reads the state folder.
    """


@adapters.command("list")
@server_options
@_folder
@click.option("--tenant", metavar="NAME", callback=not_empty, help="Of this tenant and its end users alone.")
def list_(base_url: str, api_key: str | None, folder: Path | None, tenant: str | None) -> None:
    """All versions of all adapters, newest last; the served one is marked with *."""
    rows = _listed(base_url, api_key, folder, tenant)
    if not rows:
        click.echo("no adapter has been learned yet")
    for row in rows:
        mark = "*" if row["served"] else " "
        click.echo(f"{mark} {row['key']}@{row['version']}  {_when(row)}  {row['status']:<11} {row['reason']}")


@adapters.command()
@click.argument("key")
@click.argument("version", type=click.IntRange(min=1), required=False)
@server_options
@_folder
def show(key: str, version: int | None, base_url: str, api_key: str | None, folder: Path | None) -> None:
    """One version of KEY (the newest, if none is named): what made it, what the gates measured, how large it is."""
    key, version = _named(key, version)
    if version is None:
        listed = _listed(base_url, api_key, folder, _tenant_of(key))
        kept = [row["version"] for row in listed if row["key"] == key]
        if not kept:
            raise click.ClickException(f"adapter {key} is not known")
        version = max(kept)
    path = f"/v1/sona/adapters/show?{urlencode({'key': key, 'version': version})}"
    found = _ask(base_url, api_key, folder, path, lambda folder: _offline_show(folder, key, version))
    found["created_at"] = _when(found)
    _tell(found)


@adapters.command()
@click.argument("key")
@click.argument("one", type=click.IntRange(min=0))
@click.argument("other", type=click.IntRange(min=0))
@server_options
@_folder
def diff(key: str, one: int, other: int, base_url: str, api_key: str | None, folder: Path | None) -> None:
    """How versions ONE and OTHER of KEY differ on the answers kept for it; 0 is the base model.

    norms, cosine: of the whole change of hidden states as a matrix. kl: nats per token from ONE to OTHER, to second
    order; only a running server has the model that it takes.
    """
    path = f"/v1/sona/adapters/diff?{urlencode({'key': key, 'from': one, 'to': other})}"
    _tell(_ask(base_url, api_key, folder, path, lambda folder: _offline_diff(folder, key, one, other)))


@adapters.command()
@click.argument("key")
@click.argument("version", type=click.IntRange(min=0))
@server_options
def rollback(key: str, version: int, base_url: str, api_key: str | None) -> None:
    """Serve VERSION of KEY again (0: the base model). Needs the running server."""
    Connection(base_url, api_key).call("POST", "/v1/sona/adapters/rollback", {"key": key, "version": version})
    click.echo(f"{key} is at version {version}")


def _ask(
    base_url: str, api_key: str | None, folder: Path | None, path: str, offline: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    connection = Connection(base_url, api_key)
    if folder is None and (base_url != DEFAULT_BASE_URL or connection.is_alive()):
        found: dict[str, Any] = connection.call("GET", path)
        return found
    from ..config.folders import state_dir

    try:
        return offline(folder or state_dir())
    except SonaError as error:
        raise click.ClickException(str(error)) from error


def _listed(base_url: str, api_key: str | None, folder: Path | None, tenant: str | None) -> list[dict[str, Any]]:
    path = "/v1/sona/adapters" + ("" if tenant is None else f"?{urlencode({'tenant': tenant})}")
    rows: list[dict[str, Any]] = _ask(base_url, api_key, folder, path, lambda at: _offline_list(at, tenant))["data"]
    return rows


def _offline_list(folder: Path, tenant: str | None) -> dict[str, Any]:
    from ..engine.learner.comparison import describe
    from ..store import peek

    found = peek.read_adapter_heads(folder, tenant=tenant)
    return {"data": [describe(record, served=served, nbytes=size) for record, size, served in found]}


def _tenant_of(key: str) -> str | None:
    """Of ``model/tenant/group``, an end user's, too."""
    parts = key.rsplit("/", 2)
    tenant = parts[1].partition(":")[0] if len(parts) == 3 else ""
    return tenant or None


def _offline_show(folder: Path, key: str, version: int) -> dict[str, Any]:
    from ..engine.learner.comparison import describe, norm
    from ..engine.learner.shelf import size_of
    from ..store import peek

    record = peek.read_adapter(folder, key, version)
    served, _ = peek.read_versions(folder)[key]
    base = record.weights.base
    return {
        **describe(record, served=served == version, nbytes=size_of(record)),
        "rank": record.weights.micro.lora_A.shape[0],
        "base_rank": 0 if base is None else base.lora_A.shape[0],
        "layers": sorted(record.weights.layers),
        "norm": norm(record.weights),
    }


def _offline_diff(folder: Path, key: str, one: int, other: int) -> dict[str, Any]:
    from ..engine.learner.comparison import compare, unadapted
    from ..errors import NotFound
    from ..store import peek

    found = {version: peek.read_adapter(folder, key, version) for version in (one, other) if version}
    if not found:
        raise NotFound("name at least one version: 0 is the base model")
    like = next(iter(found.values()))
    before, after = (found[version].weights if version else unadapted(like.weights) for version in (one, other))
    captures = [
        capture for capture in peek.read_captures(folder, key, limit=64) if capture.fingerprint == like.fingerprint
    ]
    return {"key": key, "from": one, "to": other, **compare(before, after, captures), "kl": None}


def _named(key: str, version: int | None) -> tuple[str, int | None]:
    """``KEY@N`` names a version, too."""
    stem, _, number = key.rpartition("@")
    if version is None and stem.count("/") >= 2 and number.isascii() and number.isdigit():
        return stem, int(number)
    return key, version


def _when(row: dict[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created_at"]))


def _tell(tree: dict[str, Any], indent: int = 0) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            click.echo(f"{' ' * indent}{name}:{'' if value else ' none'}")
            _tell(value, indent + 2)
        else:
            shown = ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)
            click.echo(f"{' ' * indent}{name + ':':<24} {shown}")


def _text(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
