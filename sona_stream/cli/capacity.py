"""`sona-stream capacity`: how much disk and memory so many users take, and which bound is reached first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config.settings import DEFAULT_LOCAL_MODEL
from ..errors import SonaError

if TYPE_CHECKING:
    from ..config.settings import Deployment, Settings
    from ..engine.capacity import Load, Row
    from ..engine.limits import Limit

__all__ = ["capacity"]

_MB = 1 << 20
_LOCAL = {"adapter_mb": 256, "episode_mb": 64, "logit_cache_mb": 1024}
_REMOTE = {"SONA_VLLM_ADAPTER_MB": 64.0, "SONA_VLLM_EPISODE_MB": 64.0, "SONA_VLLM_CAPTURE_MB": 256.0}
_PLACES = {"disk": "on disk", "learner": "in this program", "host": "at the model"}
_SIZES = {DEFAULT_LOCAL_MODEL: (576, 49152)}
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")

_count = click.IntRange(0, 1_000_000_000)
_some = click.IntRange(1, 1_000_000_000)


@click.command()
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="As for serve.")
@click.option("--model", help="A name in the configuration, a folder with config.json, or a local model's name.")
@click.option("--hidden-dim", type=click.IntRange(1, 65536), help="Instead of what the model's config.json says.")
@click.option("--vocab", type=click.IntRange(2, 10_000_000), help="The same of the vocabulary.")
@click.option("--vllm/--local", "remote", default=None, help="Where the model runs; default: as configured.")
@click.option("--users", type=_some, default=100, show_default=True)
@click.option("--tenants", type=_some, default=1, show_default=True, help="That these users belong to.")
@click.option("--patterns", type=_count, default=1, show_default=True, help="Of one user, with own adapters.")
@click.option("--rank", type=click.IntRange(1, 2), help="Micro rank; default: as configured.")
@click.option("--base-rank", type=click.IntRange(0, 64), help="0: not consolidated yet; default: as configured.")
@click.option("--lessons", type=_count, default=32, show_default=True, help="Judged answers of one user.")
@click.option("--episodes", type=_count, default=10, show_default=True, help="Remembered corrections of one user.")
@click.option("--requests", type=_count, default=100, show_default=True, help="Of one user, while they are kept.")
@click.option("--tokens", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Of one answer.")
@click.option("--prompt-tokens", type=_count, default=64, show_default=True, help="Of one prompt.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def capacity(
    config: Path | None,
    model: str | None,
    hidden_dim: int | None,
    vocab: int | None,
    remote: bool | None,
    rank: int | None,
    base_rank: int | None,
    as_json: bool,
    **counts: int,
) -> None:
    """Forecast what adapters, lessons, episodes and patterns of so many users take, and which bound is full first.

    Right to a tenth. Starts nothing and reads nothing but the configuration. Of vLLM the bounds are those that
    SONA_VLLM_ADAPTER_MB and its like say here, else their defaults.
    """
    from ..app.engine_settings import engine_config
    from ..config.load import load_settings
    from ..engine.capacity import Load, rows_of
    from ..engine.limits import limits_of

    try:
        settings = load_settings(config)
        engine = engine_config(settings, 256)
    except SonaError as error:
        raise click.ClickException(str(error)) from error
    deployment = _deployment(settings, model)
    known = _size(model or (DEFAULT_LOCAL_MODEL if deployment is None else deployment.upstream_model))
    if hidden_dim is None and known is None:
        name = model or (deployment.upstream_model if deployment is not None else "")
        raise click.UsageError(
            f"the size of {name!r} is not known here: name a folder with its config.json, or give --hidden-dim"
        )
    if counts["tenants"] > counts["users"]:
        raise click.UsageError(f"--tenants {counts['tenants']} is more than --users {counts['users']}")
    width, words = known or (0, 49152)
    load = Load(
        rank=engine.micro_lora_rank if rank is None else rank,
        base_rank=engine.base_lora_rank if base_rank is None else base_rank,
        hidden_dim=hidden_dim or width,
        vocab=vocab or words,
        **counts,
    )
    away = remote if remote is not None else deployment is not None and deployment.provider != "local"
    bounds = _bounds(deployment, away)
    rows = rows_of(load, settings.sona, engine, bounds, remote=away)
    limits = limits_of(load, settings.sona, rows, bounds)
    told = _told(load, rows, limits, away)
    if as_json:
        click.echo(json.dumps(told, indent=1))
    else:
        _show(told)


def _deployment(settings: Settings, model: str | None) -> Deployment | None:
    """That of this name, else the first whose hidden states may be in reach."""
    some = [one for one in settings.models if one.provider != "openai"]
    named = [one for one in some if model in (one.model_name, one.upstream_model)]
    return next(iter(named if model else some), None)


def _size(model: str) -> tuple[int, int] | None:
    """(hidden size, vocabulary) as the model's config.json says."""
    from ..config.folders import cache_dir

    places = [Path(model).expanduser(), *sorted((cache_dir() / "models").glob(f"{Path(model).name}-*"))]
    for place in places:
        try:
            said = json.loads((place / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        inner = {**said, **said.get("text_config", {})}
        width = next((inner[name] for name in _WIDTHS if name in inner), None)
        if isinstance(width, int) and isinstance(inner.get("vocab_size"), int):
            return width, inner["vocab_size"]
    return _SIZES.get(model.lower())


def _bounds(deployment: Deployment | None, remote: bool) -> dict[str, int]:
    """Setting -> bytes, of the model's host."""
    if not remote:
        params = {} if deployment is None else deployment.params
        return {f"litellm_params.{name}": int(params.get(name, mb)) * _MB for name, mb in _LOCAL.items()}
    bounds = {}
    for name, mb in _REMOTE.items():
        said = os.environ.get(name) or str(mb)
        try:
            bounds[name] = int(float(said) * _MB)
        except (ValueError, OverflowError):
            raise click.ClickException(f"{name}={said!r}: expected a number of megabytes") from None
    return bounds


def _told(load: Load, rows: list[Row], limits: list[Limit], remote: bool) -> dict[str, Any]:
    from dataclasses import asdict

    bounds = {one.setting: one.limit for one in limits}
    totals: dict[str, dict[str, int]] = {}
    bounded: dict[tuple[str, str], int] = {}
    for row in rows:
        place = totals.setdefault(row.place, {"needed": 0, "within_bounds": 0})
        need = row.needed(load.users)
        place["needed"] += need
        if row.setting in bounds:
            bounded[row.place, row.setting] = bounded.get((row.place, row.setting), 0) + need
        else:
            place["within_bounds"] += need
    for (name, setting), need in bounded.items():
        totals[name]["within_bounds"] += min(need, int(bounds[setting]))
    reached = [one for one in limits if one.users is not None]
    return {
        "load": asdict(load),
        "host": "vllm" if remote else "local",
        "rows": [
            {**asdict(row), "a_user": round(row.size * row.each), "needed": row.needed(load.users)} for row in rows
        ],
        "totals": totals,
        "limits": [{**asdict(one), "users": one.users} for one in limits],
        "first": {"setting": reached[0].setting, "users": reached[0].users} if reached else None,
    }


def _show(told: dict[str, Any]) -> None:
    load = told["load"]
    click.echo(
        f"{load['users']:,} users of {load['tenants']:,} tenants; {load['patterns']} patterns, {load['lessons']} "
        f"lessons, {load['episodes']} episodes, {load['requests']} requests each; {load['tokens']} tokens an answer"
    )
    click.echo(
        f"adapters of rank {load['rank']} + {load['base_rank']}; hidden size {load['hidden_dim']}, on "
        + ("a vLLM server" if told["host"] == "vllm" else "a local model")
    )
    for place, title in _PLACES.items():
        click.echo(f"\n{title:<28}{'a user':>12}{'all':>12}  bound")
        for row in told["rows"]:
            if row["place"] == place:
                click.echo(
                    f"  {row['what']:<26}{_bytes(row['a_user']):>12}{_bytes(row['needed']):>12}  {row['setting']}"
                )
        total = told["totals"][place]
        held = (
            "" if total["needed"] == total["within_bounds"] else f"  within bounds {_bytes(total['within_bounds'])}"
        )
        click.echo(f"  {'total':<26}{'':>12}{_bytes(total['needed']):>12}{held}")
    click.echo(f"\n{'bound':<34}{'limit':>12}{'full at':>16}")
    for one in told["limits"]:
        limit = _bytes(one["limit"]) if one["unit"] == "bytes" else f"{one['limit']:,}"
        full = "never" if one["users"] is None else f"{one['users']:,} users"
        click.echo(f"  {one['setting']:<32}{limit:>12}{full:>16}")
    if told["first"] is not None:
        first = next(one for one in told["limits"] if one["setting"] == told["first"]["setting"])
        click.echo(f"\nfirst: {first['setting']}, with {first['users']:,} users: {first['then']}")


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
