"""`sona-stream models pull | distill`."""

from __future__ import annotations

from pathlib import Path

import click

from .. import plugins
from ..config.settings import CONTEXTUAL_MODEL, DEFAULT_LOCAL_MODEL
from ..errors import SonaError

__all__ = ["models"]


@click.group()
def models() -> None:
    """Fetch the default model; build the embedding table."""


@models.command()
@click.argument("name", default=DEFAULT_LOCAL_MODEL)
def pull(name: str) -> None:
    """Fetch a local model (default: SmolLM2-135M-Instruct), check it and convert it. Prints its folder.

    all-minilm-l6-v2 is the memory's encoder: it tells paraphrases of a corrected question from near misses.
    """
    try:
        click.echo(plugins.load("models", "pull_encoder" if name == CONTEXTUAL_MODEL else "pull")(name))
    except SonaError as error:
        raise click.ClickException(str(error)) from error


@models.command()
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
def distill(output: Path) -> None:
    """Rebuild the static embedding table from all-MiniLM-L6-v2 into OUTPUT (needs the extra `local`)."""
    try:
        plugins.load("models", "distill")(output)
    except SonaError as error:
        raise click.ClickException(str(error)) from error
    click.echo(output)
