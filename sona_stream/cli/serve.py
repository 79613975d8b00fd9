"""`sona-stream serve`: the proxy."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import urllib.parse
from pathlib import Path

import click

from ..errors import SonaError
from .connection import address
from .given import given

__all__ = ["serve"]

_log = logging.getLogger(__name__)

_OPENAI, _OPENAI_KEY = ("https", "api.openai.com", 443), "OPENAI_API_KEY"
_LONGEST_GRACE_S = 86_400


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file: LiteLLM's model_list and a sona: block.",
)
@click.option("--model", help="Serve this local model: a folder, or the name of a model on the hub.")
@click.option("--upstream", metavar="URL", help="Proxy this OpenAI-compatible server; any model name passes.")
@click.option(
    "--upstream-key-env",
    metavar="NAME",
    help="Environment variable with the key that --upstream is sent; without it the clients' own keys pass. "
    f"{_OPENAI_KEY} is taken by itself only for https://api.openai.com.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the learned state; default: the platform's, or SONA_STREAM_STATE.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    default=30,
    show_default=True,
    type=click.IntRange(0, _LONGEST_GRACE_S),
    help="How long answers may go on once the server is told to end; a second Ctrl-C ends them at once.",
)
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@click.option("--until-eof", is_flag=True, hidden=True, help="End when standard input does (for `chat`).")
def serve(
    config: Path | None,
    model: str | None,
    upstream: str | None,
    upstream_key_env: str | None,
    host: str,
    port: int,
    state_dir: Path | None,
    grace: int,
    log_level: str,
    until_eof: bool,
) -> None:
    """Start the proxy. Without options: SmolLM2-135M-Instruct in this process, on 127.0.0.1:8080."""
    if sum(one is not None for one in (config, model, upstream)) > 1:
        raise click.UsageError("--config, --model and --upstream exclude each other: put all models into one file")
    if upstream_key_env is not None and upstream is None:
        raise click.UsageError(
            "--upstream-key-env says which key --upstream is sent; in a file: litellm_params.api_key"
        )
    logging.basicConfig(
        level=log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every probe of a server says nothing
    if until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    from ..app import Application
    from ..config.load import load_settings, settings_for_local, settings_for_upstream
    from ..server import create_app
    from ..server import run as server

    try:
        if upstream is not None:
            upstream = _whole(upstream)
            settings = settings_for_upstream(upstream, api_key=_key_for(upstream, upstream_key_env))
        else:
            settings = load_settings(config) if model is None else settings_for_local(given(model, "--model"))
        application = Application(settings, directory=state_dir)
        server.serve(create_app(application), host, port, grace=grace, announce=click.echo)
    except SonaError as error:
        raise click.ClickException(str(error)) from error


def _whole(upstream: str) -> str:
    """An URL that paths can be put behind. Raises click.BadParameter."""
    if "://" not in given(upstream, "--upstream"):
        raise click.BadParameter(f"{upstream!r}: is it http://{upstream}?", param_hint="--upstream")
    parts = address(upstream, "--upstream")
    if parts.query or parts.fragment:
        raise click.BadParameter(
            f"{upstream!r} has a query or fragment, which cannot stand before /v1/chat/completions",
            param_hint="--upstream",
        )
    return urllib.parse.urlunsplit(parts)


def _key_for(upstream: str, variable: str | None) -> str | None:
    """OpenAI's key is what many have in their environment: it goes to OpenAI, or to whom it is named for."""
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            raise click.UsageError(f"--upstream-key-env: the environment variable {variable} is not set, or empty")
        return key
    key = os.environ.get(_OPENAI_KEY, "").strip()
    if key and not _is_openai(upstream):
        _log.info("%s is not sent to this --upstream: --upstream-key-env would do that", _OPENAI_KEY)
        return None
    return key or None


def _is_openai(upstream: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(upstream)
        return (parts.scheme, parts.hostname, parts.port or 443) == _OPENAI
    except ValueError:
        return False


def _end_with_input() -> None:
    # Not `sys.stdin`: its lock, held by this thread when the program ends, would be fatal to the interpreter.
    while os.read(0, 4096):
        pass
    signal.raise_signal(signal.SIGTERM)
