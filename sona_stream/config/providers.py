"""LiteLLM's provider prefixes, and which of our backends speaks to each of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points

from ..errors import ConfigError

__all__ = ["Provider", "find_provider", "installed_backends"]


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """``backend`` is the entry point in `sona_stream.backends`; ``api_base`` the provider's own address."""

    backend: str
    api_base: str | None = None
    key_variable: str | None = None
    """Environment variable that holds the key for ``api_base`` when the file gives none."""
    base_variables: tuple[str, ...] = ()
    """Environment variables that may name the address when the file gives none."""
    needs_base: bool = False
    base_suffix: str = ""
    """Appended to an `api_base` that lacks it: the path of the provider's OpenAI-compatible routes."""


def _hosted(api_base: str, key_variable: str) -> Provider:
    return Provider("openai", api_base, key_variable)


def _own(name: str) -> Provider:
    upper = name.upper()
    return Provider("openai", None, f"{upper}_API_KEY", (f"{upper}_API_BASE",), needs_base=True)


_OPENAI = Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", ("OPENAI_BASE_URL", "OPENAI_API_BASE"))
_OLLAMA = Provider("openai", "http://localhost:11434/v1", "OLLAMA_API_KEY", ("OLLAMA_API_BASE",), False, "/v1")

_PROVIDERS: dict[str, Provider] = {
    "openai": _OPENAI,
    "text-completion-openai": _OPENAI,
    "custom_openai": _OPENAI,
    "openai_like": _own("openai_like"),
    "hosted_vllm": _own("hosted_vllm"),
    "vllm": Provider("vllm", None, "HOSTED_VLLM_API_KEY", ("HOSTED_VLLM_API_BASE",), needs_base=True),
    "litellm_proxy": _own("litellm_proxy"),
    "lm_studio": _own("lm_studio"),
    "llamafile": _own("llamafile"),
    "xinference": _own("xinference"),
    "ollama": _OLLAMA,
    "ollama_chat": _OLLAMA,
    "ollama-openai-compat": _OLLAMA,
    "cerebras": _hosted("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "deepinfra": _hosted("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "deepseek": _hosted("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "fireworks_ai": _hosted("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "groq": _hosted("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": _hosted("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "nvidia_nim": _hosted("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "openrouter": _hosted("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "perplexity": _hosted("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "sambanova": _hosted("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "together_ai": _hosted("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "xai": _hosted("https://api.x.ai/v1", "XAI_API_KEY"),
    "local": Provider("local"),
    "vllm_inprocess": Provider("vllm_inprocess"),
}


def installed_backends() -> frozenset[str]:
    """Names of the entry points in `sona_stream.backends`: a third party's is a provider of its own name."""
    return frozenset(point.name for point in entry_points(group="sona_stream.backends"))


def find_provider(model: str, custom: object, backends: Collection[str], where: str) -> tuple[str, Provider, str]:
    """(provider's name, provider, model's name behind it) of LiteLLM's ``provider/name``; bare is OpenAI's.

    ``custom``: `custom_llm_provider` as it stands in the file.
    """
    prefix, slash, rest = model.partition("/")
    if not isinstance(custom, str | None):
        raise ConfigError(
            f"{where}: litellm_params.custom_llm_provider must be a provider's name, like openai, not {custom!r}"
        )
    if custom is not None:
        prefix, rest = custom, model.removeprefix(f"{custom}/")
    elif not slash:
        prefix, rest = "openai", model
    if not rest:
        raise ConfigError(f"{where}: litellm_params.model {model!r} names no model after the provider")
    known: Mapping[str, Provider] = _PROVIDERS
    if prefix in known:
        return prefix, known[prefix], rest
    if prefix in backends:
        return prefix, Provider(prefix), rest
    names = sorted({*known, *backends})
    near = difflib.get_close_matches(prefix, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{where}: the provider {prefix!r} of litellm_params.model {model!r} is not supported{hint} "
        f"(supported: {', '.join(names)}; for another OpenAI-compatible server write openai/{model} with api_base)"
    )
