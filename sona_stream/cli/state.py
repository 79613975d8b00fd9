"""`sona-stream state backup | restore | verify | forget`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ..config.folders import state_dir
from ..errors import SonaError
from .given import not_empty

if TYPE_CHECKING:
    from ..store import Report

__all__ = ["state"]

T = TypeVar("T")

_folder = click.option(
    "--state-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the learned state; default: the platform's, or SONA_STREAM_STATE.",
)


@click.group()
def state() -> None:
    """Back up, restore or verify what was learned, or forget a person or a tenant."""


@state.command()
@click.argument("target", type=click.Path(path_type=Path))
@_folder
def backup(target: Path, folder: Path | None) -> None:
    """Write a consistent copy of the learned state to TARGET, also while a server runs: a new folder, or one file
    where it ends in .tar.

    Exits with 1 when something is damaged: the copy is made, without it.
    """
    from ..store import maintenance

    _tell(_run(lambda: maintenance.backup(folder or state_dir(), target)))


@state.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@_folder
@click.option("--force", is_flag=True, help="Replace what is there (a backup of it is made first).")
def restore(source: Path, folder: Path | None, force: bool) -> None:
    """Bring back a backup. The server must not run.

    Exits with 1 when the backup was not whole: what there was of it is restored.
    """
    from ..store import maintenance

    report = _run(lambda: maintenance.restore(source, folder or state_dir(), force=force))
    click.echo(f"restored to {report.path}")
    _tell(report)


@state.command()
@_folder
def verify(folder: Path | None) -> None:
    """Check the database, every file's hash, and the versions. Exits with 1 when something is wrong."""
    from ..store import maintenance

    _tell(_run(lambda: maintenance.verify(folder or state_dir())))


@state.command()
@click.option(
    "--tenant",
    required=True,
    callback=not_empty,
    help="Whose data; without --user all of it, adapters and patterns included.",
)
@click.option("--user", callback=not_empty, help="Only this end user's: requests, feedback and judged answers.")
@_folder
def forget(tenant: str, user: str | None, folder: Path | None) -> None:
    """Delete what is kept of a tenant or of one of its end users. The server must not run.

    Backups that you made yourself are yours to delete.
    """
    from ..store import forget as forget_rows

    removed = _run(lambda: forget_rows(folder or state_dir(), tenant=tenant, user=user))
    counts = ", ".join(f"{count} {kind}" for kind, count in removed.items() if count)
    whose = f"tenant {tenant}" if user is None else f"user {user} of tenant {tenant}"
    click.echo(f"forgot {whose}: {counts or 'nothing was kept'}")


def _tell(report: Report) -> None:
    click.echo(report)
    if not report.ok:
        raise SystemExit(1)


def _run(action: Callable[[], T]) -> T:
    try:
        return action()
    except SonaError as error:
        raise click.ClickException(str(error)) from error
