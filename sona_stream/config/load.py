"""Reads and checks a configuration file: LiteLLM's `model_list` and our own `sona:` block."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..events import PATTERN_TYPES
from .entries import parse_entries
from .keys import check_keys, hash_key
from .providers import installed_backends
from .settings import DEFAULT_LOCAL_MODEL, WILDCARD, Deployment, Settings, SonaSettings
from .strict import convert

__all__ = [
    "check_bind",
    "hash_key",
    "is_loopback",
    "load_settings",
    "read_settings",
    "settings_for_local",
    "settings_for_upstream",
]

_log = logging.getLogger(__name__)

_OURS = ("model_list", "sona")
_LITELLM = frozenset(
    {
        "callback_settings",
        "credential_list",
        "default_vertex_config",
        "environment_variables",
        "files_settings",
        "finetune_settings",
        "general_settings",
        "guardrails",
        "include",
        "litellm_settings",
        "mcp_servers",
        "prompts",
        "router_settings",
        "search_tools",
        "vector_store_registry",
    }
)
_FROM_ENVIRONMENT = "os.environ/"


def load_settings(path: str | Path | None = None) -> Settings:
    """The settings of a file, or the defaults: the local model. Logs each warning once. Raises `ConfigError`."""
    if path is None:
        return settings_for_local()
    settings, warnings = read_settings(path)
    for warning in warnings:
        _log.warning("%s: %s", path, warning)
    return settings


def read_settings(path: str | Path, *, backends: Collection[str] | None = None) -> tuple[Settings, list[str]]:
    """(settings, warnings). ``backends``: names of the installed backends, by default those of the entry points."""
    data = _read(Path(path))
    warnings = _check_sections(data)
    sona_data = _resolve(data.get("sona") or {}, "sona")
    sona = convert(sona_data, SonaSettings, "sona")
    names = installed_backends() if backends is None else backends
    if data.get("model_list") is None:
        warnings.append(f"there is no `model_list`: the local model {DEFAULT_LOCAL_MODEL} answers")
        models = settings_for_local().models
    else:
        models = parse_entries(_resolve_entries(data["model_list"]), sona.timeouts, names, warnings)
    _check_sona(sona, models)
    return Settings(models=models, sona=sona, source=str(path)), warnings


def settings_for_local(model: str = DEFAULT_LOCAL_MODEL, *, sona: SonaSettings | None = None) -> Settings:
    """One model in this process: the default, a path, or a hub id. It is named by its last path component."""
    name = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or model
    deployment = Deployment(model_name=name, provider="local", upstream_model=model)
    return Settings(models=(deployment,), sona=sona or SonaSettings())


def settings_for_upstream(
    url: str, *, models: Sequence[str] = (), api_key: str | None = None, sona: SonaSettings | None = None
) -> Settings:
    """One OpenAI-compatible server at ``url``, with or without ``/v1``.

    Without ``models`` every name that a client asks for is passed on as it is.
    """
    block = sona or SonaSettings()
    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    entries: list[dict[str, Any]] = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": base, "api_key": api_key}}
        for name in models or (WILDCARD,)
    ]
    return Settings(models=parse_entries(entries, block.timeouts, (), []), sona=block)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``; a name counts by all its addresses."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)} if host else set()
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def check_bind(settings: Settings, host: str) -> None:
    """Raises `ConfigError` for an address that others can reach while nobody needs a key."""
    if not settings.sona.keys and not is_loopback(host):
        raise ConfigError(
            f"binding to {host or 'every address'!s} without keys would let anyone use and teach the models: "
            "set `sona.keys` (`sona-stream keys hash` prints an entry's `key`), or bind to 127.0.0.1"
        )


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {path} is not UTF-8: {error.reason}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration {path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"the configuration {path} must be a mapping with `model_list` and `sona`")
    return data


def _check_sections(data: Mapping[Any, Any]) -> list[str]:
    """Warnings, one a section. A slip in the name of one of our own sections is an error: it may hold the keys."""
    warnings = []
    for name in data:
        if name in _OURS:
            continue
        if name in _LITELLM:
            warnings.append(f"the section `{name}` is LiteLLM's and is not used here")
        elif near := difflib.get_close_matches(str(name).lower(), _OURS, n=1, cutoff=0.7):
            raise ConfigError(f"the section `{name}` is unknown; did you mean `{near[0]}`?")
        else:
            warnings.append(f"the section `{name}` is unknown and is not used")
    return warnings


def _resolve_entries(entries: object) -> object:
    if not isinstance(entries, list):
        return entries
    return [_resolve(entry, _entry_name(entry, index)) for index, entry in enumerate(entries)]


def _entry_name(entry: object, index: int) -> str:
    name = entry.get("model_name") if isinstance(entry, Mapping) else None
    return f"model_list[{index}]" + (f" ({name})" if isinstance(name, str) else "")


def _resolve(value: Any, where: str) -> Any:
    """``os.environ/NAME`` anywhere inside to what the environment says."""
    if isinstance(value, Mapping):
        return {key: _resolve(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, str) and value.startswith(_FROM_ENVIRONMENT):
        name = value.removeprefix(_FROM_ENVIRONMENT)
        if name not in os.environ:
            raise ConfigError(f"{where}: the environment variable {name} is not set")
        return os.environ[name]
    return value


def _check_sona(sona: SonaSettings, models: Sequence[Deployment]) -> None:
    check_keys(sona.keys)
    for name, metric in sona.metrics.items():
        if not metric.max > metric.min:
            raise ConfigError(f"`sona.metrics.{name}.max` ({metric.max}) must be above its min ({metric.min})")
    low, high = sona.learner.ratio_clip
    if not 0 <= low <= 1 <= high:
        raise ConfigError(f"`sona.learner.ratio_clip` must be two numbers around 1, not {(low, high)}")
    for name, weight in sona.scoring.weights.items():
        if weight < 0:
            raise ConfigError(f"`sona.scoring.weights.{name}` must be 0 or more, not {weight}")
    _check_routing(sona, {model.model_name for model in models})


def _check_routing(sona: SonaSettings, names: Collection[str]) -> None:
    routing = sona.routing
    for kind in routing.types:
        if kind not in PATTERN_TYPES:
            raise ConfigError(f"`sona.routing.types.{kind}` is no pattern type (known: {', '.join(PATTERN_TYPES)})")
    asked: list[tuple[str, str | None]] = [(f"types.{kind}", name) for kind, name in routing.types.items()]
    asked += [("general_model", routing.general_model), ("default_model", routing.default_model)]
    for name, targets in routing.fallbacks.items():
        asked += [(f"fallbacks.{name}", target) for target in (name, *targets)]
    for where, asked_name in asked:
        if asked_name is not None and asked_name not in names and WILDCARD not in names:
            raise ConfigError(
                f"`sona.routing.{where}` names {asked_name!r}, which is no model_name of `model_list` "
                f"(there are: {', '.join(sorted(names))})"
            )
