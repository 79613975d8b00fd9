"""A model that answers: everything that exists once the weights are loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from sona_stream.config.settings import SonaSettings
from sona_stream.errors import ConfigError
from sona_stream.events import AdapterRef, Request
from sona_stream.lora import Capture
from sona_stream_adapters.episodes import EpisodeStore
from sona_stream_adapters.text import check_sampling, prompt_ids

from .adapters import AdapterTable
from .batch import DecodeBatch
from .capture import CaptureRing
from .generation import Generation
from .host import LocalHost
from .layers import Births
from .memory import Memory
from .model import LanguageModel, load_model
from .options import LocalOptions
from .sampling import SamplingState
from .scheduler import Scheduler

__all__ = ["Engine"]

_MB = 1 << 20
_LONG_TEXT = 20_000
"""characters above which tokenizing leaves the event loop"""


class Engine:
    """Model, torch thread and host. Construction loads and blocks."""

    def __init__(self, folder: Path, *, name: str, options: LocalOptions, settings: SonaSettings) -> None:
        self.model = load_model(folder, name=name, layered=options.layers is not None)
        self.adapters = AdapterTable(
            self.model.hidden_dim, max_bytes=options.adapter_mb * _MB, layers=self.model.adapted_layers
        )
        self._options = options
        self._captures = CaptureRing(settings.learner.capture_mb * _MB) if settings.learning != "off" else None
        self.episodes = EpisodeStore(
            max_bytes=options.episode_mb * _MB,
            limit="litellm_params.episode_mb",
            hidden_dim=self.model.hidden_dim,
            vocab_size=self.model.vocab_size,
        )
        memory = Memory(self.episodes, share=options.episode_share, threshold=options.episode_threshold)
        batch = DecodeBatch(
            self.model,
            self.adapters,
            memory,
            max_rows=options.max_batch,
            max_cached_tokens=options.kv_cache_mb * _MB // self.model.cache_bytes_per_token,
        )
        self.scheduler = Scheduler(batch, threads=options.streaming_threads, idle_threads=options.idle_threads)
        self.host = LocalHost(
            self.model,
            self.scheduler,
            self.adapters,
            CaptureRing(0) if self._captures is None else self._captures,
            self.episodes,
            logit_cache_bytes=options.logit_cache_mb * _MB,
            births=_births(self.model, options),
        )
        self.scheduler.start()

    async def begin(self, request: Request) -> Generation:
        """Check and tokenize; nothing is computed yet. Raises InvalidRequest naming the field."""
        check_sampling(request, name=self.model.name, max_choices=self._options.max_batch)
        long = len(request.body) > _LONG_TEXT
        ids = await asyncio.to_thread(prompt_ids, self.model, request) if long else prompt_ids(self.model, request)
        wanted = request.sampling.max_tokens
        room = self.model.context - len(ids)
        ref = request.adapter
        pinned = self.adapters.pinned(ref) if ref is not None and ref.pinned else None
        settled = self.model.adapted_layers > 0
        if settled and pinned is None:
            pinned = self.adapters.current(ref)
        return Generation(
            request_id=request.id,
            prompt_ids=ids,
            max_tokens=min(self._options.max_tokens if wanted is None else wanted, room),
            eos_ids=self.model.eos_ids,
            tokenizer=self.model.tokenizer,
            stop=request.sampling.stop,
            sampling=[self._sampling(request, index) for index in range(request.sampling.n)],
            adapter=ref,
            pinned=pinned,
            settled=settled,
            episodes=request.episodes,
            keep=self._keep if self._captures is not None and request.learn else None,
            fingerprint=self.host.fingerprint,
            hidden_dim=self.model.hidden_dim,
            loop=asyncio.get_running_loop(),
            queue=asyncio.Queue(),
        )

    def adapter_now(self, generation: Generation) -> AdapterRef | None:
        """What the first token will be drawn under; None is the base model."""
        serving, ref = generation.serving(self.adapters), generation.adapter
        if serving is None or ref is None:
            return None
        return AdapterRef(key=ref.key, version=serving.version, pinned=ref.pinned)

    def _keep(self, capture: Capture) -> None:
        """Called in the torch thread. An answer during which the model itself changed belongs to neither."""
        if self._captures is not None and capture.fingerprint == self.host.fingerprint:
            self._captures.put(capture)

    def _sampling(self, request: Request, index: int) -> SamplingState:
        asked = request.sampling
        seed = None if asked.seed is None else np.random.SeedSequence([abs(asked.seed), int(asked.seed < 0), index])
        return SamplingState(
            temperature=_first(asked.temperature, self._options.temperature, self.model.temperature),
            top_p=_first(asked.top_p, self._options.top_p, self._model_top_p(asked.temperature)),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            top_logprobs=asked.logprobs or 0,
            rng=np.random.default_rng(seed),
        )

    def _model_top_p(self, temperature: float | None) -> float:
        """The model's recommended pair belongs together: who names a temperature gets the plain distribution."""
        return self.model.top_p if temperature is None else 1.0


def _births(model: LanguageModel, options: LocalOptions) -> Births | None:
    """Raises ConfigError naming a layer that the model does not have."""
    if options.layers is None:
        return None
    count = model.adapted_layers
    layers = range(count) if options.layers == "all" else options.layers
    for layer in layers:
        if not 0 <= layer < count:
            raise ConfigError(
                f"{model.name}: litellm_params.layers: {layer} is outside 0..{count - 1}, the model's"
            )
    if options.layer_rank > model.hidden_dim:
        raise ConfigError(f"{model.name}: litellm_params.layer_rank must be at most {model.hidden_dim}, the width")
    return Births(model, layers, options.layer_rank)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
