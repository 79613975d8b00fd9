"""What `litellm_params` may say about a vLLM server beside what any OpenAI-compatible server has."""

from __future__ import annotations

import dataclasses

from sona_stream.config.settings import Deployment
from sona_stream.errors import ConfigError

__all__ = ["CONTROL", "HOOK", "INSTANCE", "VllmOptions", "parse_options", "with_control"]

CONTROL = "x-sona-control"
"""Header with the control key: only who has it may bind a request to an adapter."""
INSTANCE = "x-sona-instance"
"""Header with the engine start that holds our adapters; another one answers 409."""
HOOK = b"x-sona-hook"
"""Header of an answer to a bound request: ``before: reason`` or ``during: reason``, the hook being off."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    """Checked."""

    control_key: str = dataclasses.field(repr=False)
    """the server's SONA_VLLM_KEY"""
    fetch_hidden: bool = False
    """hidden states travel to the proxy and are kept there; else they stay with the server, and what it no longer
    holds is encoded again from its token ids"""


def parse_options(deployment: Deployment) -> VllmOptions:
    """Raises ConfigError naming the entry and the field, never the key."""
    where = f"model {deployment.model_name!r}: litellm_params"
    key, fetch = deployment.params.get("control_key"), deployment.params.get("fetch_hidden", False)
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or len(key) < 16:
        raise ConfigError(f"{where}.control_key must be the server's SONA_VLLM_KEY: at least 16 ASCII characters")
    if fetch not in (True, False):
        raise ConfigError(f"{where}.fetch_hidden must be true or false, not {fetch!r}")
    return VllmOptions(control_key=key, fetch_hidden=bool(fetch))


def with_control(deployment: Deployment, options: VllmOptions) -> Deployment:
    """The entry as the OpenAI-compatible backend takes it: the key goes with every call to this server."""
    params = {
        name: value for name, value in deployment.params.items() if name not in ("control_key", "fetch_hidden")
    }
    extra, forwarded = params.get("extra_headers") or {}, params.get("forward_headers") or []
    if isinstance(extra, dict) and isinstance(forwarded, list):  # else the backend says what is wrong with them
        params |= {
            "extra_headers": {**extra, CONTROL: options.control_key},
            "forward_headers": [*forwarded, INSTANCE],
        }
    fields = {name: getattr(deployment, name) for name in deployment.__struct_fields__}
    return Deployment(**{**fields, "params": params})
