"""vLLM's engine, started from here: token ids go in, token ids come out. Its core runs in processes of its own;
what stands before it and behind it (templates, tokens, texts, adapters, lessons) runs in this one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from sona_stream.errors import InvalidRequest, ModelUnavailable, NotReady
from sona_stream_adapters.vllm_plugin.parent_watch import PARENT

__all__ = ["Engine", "start_engine"]

_log = logging.getLogger(__name__)

_MOST_CHOICES = 128
_STOP_S = 15.0
"""for its processes to end by themselves; then they are killed"""
_PLUGINS = ("sona", "sona_watch")


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Engine:
    """One start of it; `sona_stream_adapters.text.TextModel`."""

    name: str
    client: Any
    """vLLM's AsyncLLM"""
    tokenizer: Any
    """an own one, as transformers has it"""
    context: int
    """positions, prompt and answer together"""
    vocab_size: int
    eos_ids: frozenset[int]
    defaults: Mapping[str, Any]
    """of the model's sampling, as its generation config has them"""
    max_choices: int

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return not self.client.errored

    async def tokens(self, prompt: list[int], params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        """What is new of one answer, as vLLM's `CompletionOutput`s. Leaving ends the request at once.

        Raises InvalidRequest when vLLM refuses it, NotReady when the engine has died.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        rendered = {"type": "token", "prompt_token_ids": prompt}
        try:
            async with aclosing(self.client.generate(rendered, params, request_id)) as outputs:
                async for output in outputs:
                    yield output.outputs[0]
        except asyncio.CancelledError:
            await self.client.abort(request_id)  # it may have been on its way to the core
            raise
        except (ValueError, VLLMClientError) as error:
            raise InvalidRequest(f"{self.name} refuses the request: {error}") from error
        except EngineDeadError as error:
            raise NotReady(f"{self.name}: the engine has died and is started again; its log says why") from error

    def stop(self) -> None:
        """Ends its processes; blocks for some seconds."""
        _shut_down(self.client)


def start_engine(name: str, folder: Path, arguments: Mapping[str, Any]) -> Engine:
    """Blocks for as long as vLLM needs. Raises ModelUnavailable with its reason."""
    _prepare_environment(os.environ)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ModelUnavailable(f"{name}: vLLM cannot be imported here: {error}") from error
    _check_names(name, arguments, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
    try:
        settings = {"disable_log_stats": True, **arguments}
        client = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), **settings))
    except Exception as error:  # whatever one of its many parts raises
        raise ModelUnavailable(f"{name}: vLLM cannot start with {folder}: {_reason(error)}") from error
    try:
        return _described(name, client)
    except BaseException:
        _shut_down(client)
        raise


def _shut_down(client: Any) -> None:
    client.shutdown(timeout=_STOP_S)
    # Its __del__ shuts it down once more, at the interpreter's end without the modules that it needs for that.
    client.shutdown = lambda timeout=None: None


def _described(name: str, client: Any) -> Engine:
    from transformers import AutoTokenizer

    config = client.model_config
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelUnavailable(f"{name}: the tokenizer {config.tokenizer} cannot be loaded: {error}") from error
    found = {tokenizer.eos_token_id}
    ends = config.try_get_generation_config().get("eos_token_id")
    found.update(ends if isinstance(ends, list | tuple) else [ends])
    return Engine(
        name=name,
        client=client,
        tokenizer=tokenizer,
        context=int(config.max_model_len),
        vocab_size=int(config.get_vocab_size()),
        eos_ids=frozenset(int(one) for one in found if one is not None),
        defaults=dict(config.get_diff_sampling_param()),
        max_choices=min(_MOST_CHOICES, int(client.vllm_config.scheduler_config.max_num_seqs)),
    )


def _prepare_environment(environ: Any) -> None:
    """The engine's processes inherit it. What people have set stays, but the plug-in is switched on."""
    environ["SONA_VLLM"] = "1"
    environ[PARENT] = str(os.getpid())
    if environ.get("VLLM_PLUGINS"):  # it names all that are loaded
        named = [one for one in environ["VLLM_PLUGINS"].split(",") if one]
        environ["VLLM_PLUGINS"] = ",".join([*named, *(one for one in _PLUGINS if one not in named)])
    # This process has threads, which a fork would leave behind with their locks held.
    environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _check_names(model: str, arguments: Mapping[str, Any], known: list[str]) -> None:
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ModelUnavailable(
                f"{model}: litellm_params.engine_args.{name} is no argument of the installed vLLM{hint}"
            )


def _reason(error: Exception) -> str:
    """Its words; the core's own are in its log, for it runs in another process."""
    said = " ".join(str(error).split())[:600] or type(error).__name__
    return f"{said} (its log, above, says more)" if "root cause" in said.lower() else said
