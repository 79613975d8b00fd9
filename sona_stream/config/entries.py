"""One entry of LiteLLM's `model_list` to a `Deployment`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ..errors import ConfigError
from .providers import Provider, find_provider
from .settings import WILDCARD, Deployment, TimeoutSettings
from .strict import convert

__all__ = ["parse_entries"]

AUTO = "sona/auto"

_ENTRY = frozenset({"model_name", "litellm_params", "model_info"})
_USED = frozenset(
    {
        "model",
        "custom_llm_provider",
        "api_base",
        "base_url",
        "api_key",
        "timeout",
        "stream_timeout",
        "ssl_verify",
        "http2",
        "proxy",
        "client_cert",
        "retry_stale",
    }
)
_PASSED_ON = frozenset({"extra_headers", "forward_headers", "max_connections", "organization"})
"""Params that the OpenAI-compatible backend takes; of LiteLLM's others the client's own request decides."""
_OVER_HTTP = {"openai": _PASSED_ON, "vllm": _PASSED_ON | {"control_key", "fetch_hidden"}}
"""Backend -> its params, for those that speak OpenAI's protocol."""

_TRUTHS = {"true": True, "false": False}


class _Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """LiteLLM's limits: ``timeout`` until an answer begins, ``stream_timeout`` between the chunks of one."""

    timeout: float | None = None
    stream_timeout: float | None = None


class _Connection(msgspec.Struct, frozen=True, kw_only=True):
    retry_stale: bool = True
    ssl_verify: bool | str = True
    http2: bool = False
    proxy: str | None = None
    client_cert: str | tuple[str, str] | None = None


def parse_entries(
    entries: object, timeouts: TimeoutSettings, backends: Collection[str], warnings: list[str]
) -> tuple[Deployment, ...]:
    """Entries of the same name stay several deployments of one group, each with an id of its own."""
    if not isinstance(entries, list) or not entries:
        raise ConfigError("`model_list` must be a list with at least one entry")
    unused: Counter[str] = Counter()
    deployments = [
        _parse(entry, index, timeouts, backends, unused, warnings) for index, entry in enumerate(entries)
    ]
    warnings += [f"`{name}` in `model_list` is not used here ({unused[name]}x)" for name in sorted(unused)]
    return _with_ids(deployments)


def _parse(
    entry: object,
    index: int,
    timeouts: TimeoutSettings,
    backends: Collection[str],
    unused: Counter[str],
    warnings: list[str],
) -> Deployment:
    where = f"model_list[{index}]"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a mapping with model_name and litellm_params")
    name = _text(entry, "model_name", where)
    where = f"{where} ({name})"
    _check_name(name, where, warnings)
    params, info = entry.get("litellm_params"), entry.get("model_info") or {}
    if not isinstance(params, Mapping):
        raise ConfigError(f"{where}: litellm_params must be a mapping, with `model: provider/name` in it")
    if not isinstance(info, Mapping):
        raise ConfigError(f"{where}: model_info must be a mapping")
    custom = params.get("custom_llm_provider")
    label, provider, upstream = find_provider(_text(params, "model", where), custom, backends, where)
    unused.update(str(key) for key in entry if key not in _ENTRY)
    base, key = _address(params, label, provider, where)
    return Deployment(
        model_name=name,
        provider=provider.backend,
        upstream_model=upstream,
        api_base=base,
        api_key=key,
        timeouts=_timeouts(params, timeouts, where),
        params=_params(params, provider, unused),
        info={str(field): value for field, value in info.items()},
        id=str(info.get("id") or ""),
        **_connection(params, where),
    )


def _text(mapping: Mapping[str, Any], field: str, where: str) -> str:
    value = mapping.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {field} must be a text that is not empty")
    return value.strip()


def _check_name(name: str, where: str, warnings: list[str]) -> None:
    if name == AUTO:
        raise ConfigError(f"{where}: the name {AUTO} is taken: it is the one that routes")
    if not name.isprintable() or len(name) > 256:
        raise ConfigError(f"{where}: model_name must be at most 256 printable characters")
    if WILDCARD in name and name != WILDCARD:
        warnings.append(f"{where}: a pattern is not matched, only `{WILDCARD}` alone answers to every other name")


def _address(
    params: Mapping[str, Any], label: str, provider: Provider, where: str
) -> tuple[str | None, str | None]:
    """The key in the environment goes to the provider's own address only, never to one that the file names."""
    base = params.get("api_base") or params.get("base_url")
    key = params.get("api_key")
    if base is None:
        base = next((os.environ[name] for name in provider.base_variables if os.environ.get(name)), None)
        base = base or provider.api_base
        if key is None and provider.key_variable:
            key = os.environ.get(provider.key_variable)
    if base is None:
        if provider.needs_base:
            raise ConfigError(f"{where}: the provider {label!r} needs litellm_params.api_base")
        return None, None if key is None else str(key)
    base = str(base).rstrip("/")
    if not base.startswith(("http://", "https://")) or len(base.split("://", 1)[1]) == 0:
        raise ConfigError(f"{where}: litellm_params.api_base {base!r} must be an http:// or https:// address")
    if provider.base_suffix and not base.endswith(provider.base_suffix):
        base += provider.base_suffix
    return base, None if key is None else str(key)


def _section(params: Mapping[str, Any], kind: type[Any], where: str) -> Any:
    names = {field.encode_name for field in msgspec.structs.fields(kind)}
    given = {name: value for name, value in params.items() if name in names and value is not None}
    return convert(given, kind, f"{where}: litellm_params")


def _connection(params: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(_section(params, _Connection, where))
    verify = fields["ssl_verify"]
    if isinstance(verify, str):  # of a text from the environment msgspec cannot know which of both is meant
        if not verify.strip():
            raise ConfigError(f"{where}: litellm_params.ssl_verify must be true, false, or the path of a CA bundle")
        fields["ssl_verify"] = _TRUTHS.get(verify.strip().lower(), verify)
    return fields


def _timeouts(params: Mapping[str, Any], default: TimeoutSettings, where: str) -> TimeoutSettings:
    given: _Timeouts = _section(params, _Timeouts, where)
    for name, value in (("timeout", given.timeout), ("stream_timeout", given.stream_timeout)):
        if value is not None and not value > 0:
            raise ConfigError(f"{where}: litellm_params.{name} must be above 0 seconds, not {value}")
    return TimeoutSettings(
        connect=default.connect,
        first_byte=given.timeout or default.first_byte,
        idle=given.stream_timeout or given.timeout or default.idle,
    )


def _params(params: Mapping[str, Any], provider: Provider, unused: Counter[str]) -> dict[str, Any]:
    rest = {str(name): value for name, value in params.items() if name not in _USED}
    known = _OVER_HTTP.get(provider.backend)
    if known is None:
        return rest
    if "headers" in rest:  # LiteLLM has two names for this
        rest.setdefault("extra_headers", rest.pop("headers"))
    unused.update(f"litellm_params.{name}" for name in rest if name not in known)
    return {name: value for name, value in rest.items() if name in known}


def _with_ids(deployments: list[Deployment]) -> tuple[Deployment, ...]:
    given = Counter(deployment.info["id"] for deployment in deployments if deployment.info.get("id"))
    for name, count in given.items():
        if count > 1:
            raise ConfigError(f"model_info.id {name!r} stands in {count} entries of `model_list`")
    taken, result = {str(name) for name in given}, []
    for deployment in deployments:
        name, n = deployment.id, 1
        if not deployment.info.get("id"):
            while name in taken:
                n += 1
                name = f"{deployment.model_name}#{n}"
        taken.add(name)
        result.append(msgspec.structs.replace(deployment, id=name))
    return tuple(result)
