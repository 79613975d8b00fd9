"""The plug-in's hook on a fake runner."""

from __future__ import annotations

import torch
from fake_vllm import RunnerV1

from sona_stream_adapters.episodes import EpisodeStore
from sona_stream_adapters.vllm_plugin.adapters import AdapterTable
from sona_stream_adapters.vllm_plugin.captures import CaptureStore, Kept
from sona_stream_adapters.vllm_plugin.counters import Counters
from sona_stream_adapters.vllm_plugin.hook import Hook
from sona_stream_adapters.vllm_plugin.ring import CaptureRing
from sona_stream_adapters.vllm_plugin.runners import RunnerWraps
from sona_stream_adapters.vllm_plugin.scoring import Scoring
from sona_stream_adapters.vllm_plugin.settings import PluginSettings

D, V = 12, 40


class Stand:
    def __init__(self, ring=64, max_delta=1e3, dtype=torch.float32, seed=0, native=True, threshold=0.3):
        limits = PluginSettings(max_delta=max_delta, episode_threshold=threshold)
        self.counters = Counters()
        self.table = AdapterTable(max_bytes=1 << 20)
        self.episodes = EpisodeStore(max_bytes=1 << 20, limit="limit", hidden_dim=D, vocab_size=V)
        self.ring = CaptureRing(ring, D, dtype)
        self.captures = CaptureStore(self.ring, self.counters, max_bytes=1 << 20)
        self.hook = Hook(
            limits, self.counters, self.table, self.episodes, self.ring, self.captures, torch.device("cpu")
        )
        assert self.hook.planner.native is not None
        if not native:
            self.hook.planner.native = None
        self.runner = RunnerV1(torch.randn(V, D, generator=torch.Generator().manual_seed(seed)), seed)
        self.changed = 0
        self.wraps = RunnerWraps(self.runner, self.hook, self._model_changed)
        self.wraps.install()

    def _model_changed(self):
        self.changed += self.wraps.refresh()

    def logprobs(self, name, rows, temperature, tokens=3):
        """As a capture of `name` that is asked for now would have them, `tokens` of them a call."""
        tracked, n = self.hook.requests.live[name], len(rows.token_ids)
        zeros = torch.zeros(n)
        marks = (rows.versions, rows.memory, rows.capped)
        kept = Kept("h", name, zeros.int(), rows.token_ids, rows.hidden, rows.logprobs, *marks, None, temperature)
        scoring, calls = Scoring(tracked, kept, rows.served, rows.scored), 1
        while not scoring.advance(self.wraps.original_logits, tokens):
            calls += 1
        assert calls == max(1, -(-int((~rows.scored).sum()) // tokens))
        return kept.logprobs

    def expected(self, factors):
        """Logits of the last step, row i through factors[i]."""
        hidden = self.runner.hidden.double().numpy()
        moved = hidden.copy()
        for i, own in enumerate(factors):
            for pair in () if own is None else (own.micro, own.base):
                if pair is not None:
                    moved[i] += pair.scaling * pair.lora_B.astype(float) @ (pair.lora_A.astype(float) @ hidden[i])
        return moved @ self.runner.model.W.double().numpy().T
