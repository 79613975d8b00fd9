"""`sona-stream route "query"`: the decision alone, without asking a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import click

from ..errors import SonaError
from .given import not_empty

__all__ = ["route"]


@click.command()
@click.argument("query")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="As for serve.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of the learned state.")
@click.option("--tenant", default="default", show_default=True, callback=not_empty, help="Whose learned patterns.")
def route(query: str, config: Path | None, state_dir: Path | None, tenant: str) -> None:
    """Show which model QUERY would go to, and why: pattern, type, the rule that decided.

    Reads the learned patterns from the state folder; no model is loaded and nothing is learned.
    """
    from ..app.explain import explain
    from ..config.load import load_settings

    try:
        decision = anyio.run(explain, load_settings(config), query, state_dir, tenant)
    except SonaError as error:
        raise click.ClickException(str(error)) from error
    _show(decision)


def _show(tree: Any, indent: int = 0) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            click.echo(f"{' ' * indent}{name}:")
            _show(value, indent + 2)
        elif isinstance(value, list):
            click.echo(f"{' ' * indent}{name}:{'' if value else ' none'}")
            for item in value:
                shown = ", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else item
                click.echo(f"{' ' * indent}  - {shown}")
        else:
            click.echo(f"{' ' * indent}{name + ':':<16} {value}")
