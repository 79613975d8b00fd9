"""One worker's plug-in: everything it holds, and how it comes to stand on a model."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable
from typing import Any

import torch

from sona_stream.errors import HostError

from ..episodes import EpisodeStore
from ..head import BaseLogits
from .adapters import AdapterTable
from .captures import CaptureStore
from .counters import Counters
from .fingerprint import fingerprint_of
from .hook import Hook
from .lm_head import describe_head, find_head
from .ranks import Ranks
from .ring import CaptureRing
from .runners import RunnerWraps, problems_of
from .settings import PluginSettings

__all__ = ["TESTED", "Service", "version_warning"]

logger = logging.getLogger("sona_stream.vllm_plugin")

TESTED = ("0.27.1", "0.32.0")
_SUPPORTED = ((0, 27), (0, 34))
_LOGIT_BYTES = 64 << 20
"""base logits kept between the calls of one lesson"""


class Service:
    """Built once a worker by `sona_install`."""

    def __init__(self, worker: Any, settings: PluginSettings, ranks: Ranks) -> None:
        runner = worker.model_runner
        config = worker.model_config
        self.settings, self.ranks = settings, ranks
        self.runner = runner
        self.instance = secrets.token_hex(8)
        """names this start of the engine: what a proxy put before it is not here"""
        self.model_config = config
        self.device = torch.device(runner.device)
        self.dtype: torch.dtype = config.dtype
        self.hidden_dim = int(config.get_hidden_size())
        self.vocab_size = int(config.get_vocab_size())
        self.counters = Counters()
        self.table = AdapterTable(max_bytes=settings.adapter_bytes, device=self.device)
        self.episodes = EpisodeStore(
            max_bytes=settings.episode_bytes,
            limit="SONA_VLLM_EPISODE_MB",
            hidden_dim=self.hidden_dim,
            vocab_size=self.vocab_size,
            device=self.device,
        )
        ring = CaptureRing(settings.ring_tokens, self.hidden_dim, self.dtype, self.device)
        self.ring = ring
        self.captures = CaptureStore(ring, self.counters, max_bytes=settings.capture_bytes)
        self.hook = Hook(settings, self.counters, self.table, self.episodes, ring, self.captures, self.device)
        self.when_changed: list[Callable[[], None]] = []
        """told when the model was replaced or loaded again: what they hold was computed with its weights"""
        self.wraps = RunnerWraps(runner, self.hook, self.model_changed)
        self.fingerprint = ""
        self.logits: BaseLogits | None = None
        self.head_note = ""
        self.problems = problems_of(runner, worker.parallel_config) if ranks.last_pp else []
        self.warnings: list[str] = []
        self.serves = ranks.last_pp and not self.problems
        if self.serves:
            self.wraps.install()
            self.describe()

    def describe(self) -> None:
        """Name the model and find its lm_head, again after it was loaded again."""
        model = self.runner.get_model() if hasattr(self.runner, "get_model") else self.runner.model
        layer, _ = find_head(model)
        self.fingerprint = fingerprint_of(model, layer, self.model_config, self.ranks.gather)
        self.logits = None
        try:
            with torch.inference_mode():
                described = describe_head(
                    model,
                    self.wraps.original_logits,
                    hidden_dim=self.hidden_dim,
                    vocab_size=self.vocab_size,
                    dtype=self.dtype,
                    device=self.device,
                    rank=self.ranks.tp_rank,
                    all_reduce=self.ranks.all_reduce,
                )
        except HostError as error:
            self.head_note = f"adapters are served, but nothing can be learned: {error}"
            logger.warning("sona: %s", self.head_note)
            return
        self.head_note = described.note
        self.logits = BaseLogits(described.head, max_bytes=_LOGIT_BYTES)

    def model_changed(self) -> None:
        """The runner's model was replaced or loaded again: wrap it. What was made for another one goes."""
        if not self.wraps.refresh():
            return
        self.counters.rewraps += 1
        before = self.fingerprint
        self.describe()
        if self.fingerprint != before:
            logger.warning(
                "sona: another model was loaded: adapters, episodes and captures of the first are dropped"
            )
            self.instance = secrets.token_hex(8)  # for its callers this is another start
            self.hook.give_up("another model was loaded while it was being answered")
            self.table.clear()
            self.episodes.clear()
            self.captures.clear()
        self.hook.planner.forget()
        for forget in self.when_changed:
            forget()

    def info(self) -> dict[str, Any]:
        """What `sona_install` answers."""
        return {
            "instance": self.instance,
            "runner": self.wraps.kind,
            "model": str(self.model_config.model),
            "hidden_dim": self.hidden_dim,
            "vocab_size": self.vocab_size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fingerprint": self.fingerprint,
            "tp_rank": self.ranks.tp_rank,
            "tp_size": self.ranks.tp_size,
            "last_pp": self.ranks.last_pp,
            "head": self.head_note or "whole",
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "disabled": self.counters.disabled,
            "unserved": self.hook.unserved.newest(),
        }

    def stats(self) -> dict[str, Any]:
        """What `sona_stats` answers."""
        return {
            **dataclasses.asdict(self.counters),
            "capped_rows": self.hook.capped_rows,
            "evictions": self.table.evictions,
            "episode_evictions": self.episodes.evictions,
            "adapters": len(self.table),
            "adapter_bytes": self.table.nbytes,
            "episodes": len(self.episodes),
            "episode_bytes": self.episodes.nbytes,
            "episode_held_bytes": self.episodes.held_bytes,
            "captures": len(self.captures),
            "capture_bytes": self.captures.nbytes,
            "ring_bytes": self.ring.nbytes,
            "live_requests": len(self.hook.requests.live),
            "unserved": len(self.hook.unserved),
        }


def version_warning(version: str) -> str | None:
    """Why this version of vLLM may not do; None inside the tested range."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return f"vLLM {version}: its version cannot be compared with the tested {TESTED[0]} to {TESTED[1]}"
    if not _SUPPORTED[0] <= (major, minor) < _SUPPORTED[1]:
        return f"vLLM {version} is outside the tested range, {TESTED[0]} to {TESTED[1]}"
    return None
