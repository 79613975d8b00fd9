"""`sona-stream export`: a learned adapter as files that servers without this program take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InvalidRequest, SonaError
from .given import not_empty

if TYPE_CHECKING:
    from ..config.settings import Settings

__all__ = ["export"]


@click.command()
@click.argument("key", required=False)
@click.option(
    "--tenant", callback=not_empty, help="Instead of KEY: what this tenant's requests of every kind taught."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--version", "version", type=click.IntRange(min=1), help="Default: the version that is served.")
@click.option(
    "--format",
    "form",
    default="peft",
    show_default=True,
    type=click.Choice(["peft", "logit-bias"]),
    help="peft: equal to the adapter. logit-bias: its mean effect, for vLLM's --logits-processors.",
)
@click.option("--model", help="The model it was learned on: a folder or a hub id. Default: as --config says.")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="As for serve.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of the learned state.")
def export(
    key: str | None,
    tenant: str | None,
    out: Path,
    version: int | None,
    form: str,
    model: str | None,
    config: Path | None,
    state_dir: Path | None,
) -> None:
    """Write the adapter KEY as a LoRA that vLLM or transformers + peft serve without this program.

    KEY is model/tenant/group as `sona-stream adapters list` shows it; KEY@N is its version N. A server may run.

    The memory of episodes, what corrections said word by word, is not in it.
    """
    if (key is None) == (tenant is None):
        raise click.UsageError("name either a KEY or a --tenant")
    from .. import plugins
    from ..config.folders import state_dir as default_folder
    from ..config.load import load_settings
    from ..protocols import Exporter
    from ..store import peek

    try:
        settings = load_settings(config)
        folder = state_dir or default_folder(settings.sona.state_dir)
        known = peek.read_versions(folder)
        name, chosen = _choose(known, key, tenant, version)
        record = peek.read_adapter(folder, name, chosen)
        write: Exporter = plugins.load("exporters", form)
        lines = write(
            record,
            model=model or _model_of(settings, name),
            out=out,
            captures=lambda: peek.read_captures(folder, name, limit=256),
        )
    except SonaError as error:
        raise click.ClickException(str(error)) from error
    for line in lines:
        click.echo(line)


def _choose(
    known: dict[str, tuple[int, list[int]]], key: str | None, tenant: str | None, version: int | None
) -> tuple[str, int]:
    """The key in full and its version. Raises InvalidRequest that lists what there is."""
    if key is not None and key not in known:
        stem, _, number = key.rpartition("@")
        if stem in known and number.isascii() and number.isdigit():
            if version not in (None, int(number)):
                raise InvalidRequest(f"{key} and --version {version} name two versions", param="version")
            key, version = stem, int(number)
    name = _of_tenant(known, tenant) if key is None and tenant is not None else key
    if name is None or name not in known:
        raise InvalidRequest(f"there is no adapter {name}; {_list(known)}", param="key")
    served, kept = known[name]
    wanted = version or served
    if wanted == 0:
        raise InvalidRequest(
            f"of {name} no version is served (only observed, or rolled back to the base model); "
            f"name one with --version: {', '.join(map(str, kept))}",
            param="version",
        )
    if wanted not in kept:
        raise InvalidRequest(
            f"{name} has no version {wanted}; kept are {', '.join(map(str, kept))}", param="version"
        )
    return name, wanted


def _of_tenant(known: dict[str, tuple[int, list[int]]], tenant: str) -> str:
    """The tenant's coarsest key, which every lesson reaches."""
    from ..engine.learner import AdapterKey
    from ..engine.learner.keys import EVERYTHING

    keys = {name: AdapterKey.parse(name) for name in known}
    own = [name for name, one in keys.items() if one.tenant == tenant]
    roots = [name for name in own if keys[name].group == EVERYTHING]
    if len(roots) == 1:
        return roots[0]
    if not own:
        raise InvalidRequest(f"nothing was learned for tenant {tenant!r}; {_list(known)}", param="tenant")
    raise InvalidRequest(f"tenant {tenant!r} has several adapters; name one: {', '.join(own)}", param="tenant")


def _list(known: dict[str, tuple[int, list[int]]]) -> str:
    if not known:
        return "no adapter has been learned yet"
    names = sorted(known)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"there are: {', '.join(names[:20])}{more}"


def _model_of(settings: Settings, key: str) -> str:
    """Where the configuration says that the key's model is."""
    from ..engine.learner import AdapterKey

    model = AdapterKey.parse(key).model
    for deployment in settings.models:
        if deployment.model_name == model and deployment.provider in ("local", "vllm", "vllm_inprocess"):
            return deployment.upstream_model
    raise InvalidRequest(
        f"where the weights of model {model!r} are is not known here: give the server's --config, or name them by "
        "--model (a folder or a hub id)",
        param="model",
    )
