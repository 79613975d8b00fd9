"""What the plug-in sees of vLLM, without vLLM: a runner of each kind over a random lm_head."""

from __future__ import annotations

import types

import numpy as np
import torch

from sona_stream.lora import LoraWeights, LowRank


def weights(d, rank=2, seed=0, scale=0.05, base_rank=0):
    rng = np.random.default_rng(seed)

    def pair(r):
        A = (rng.standard_normal((r, d)) / np.sqrt(d)).astype(np.float32)
        return LowRank(A, (rng.standard_normal((d, r)) * scale).astype(np.float32), 1.0)

    return LoraWeights(pair(rank), pair(base_rank) if base_rank else None)


def new_request(request_id, prompt=(1, 2, 3), *, computed=0, temperature=1.0, ends=None, **extra):
    """`ends`: what of its sampling parameters ends the answer."""
    params = types.SimpleNamespace(temperature=temperature, extra_args=extra or None, **(ends or {}))
    return types.SimpleNamespace(
        req_id=request_id, prompt_token_ids=list(prompt), num_computed_tokens=computed, sampling_params=params
    )


def scheduled(tokens, *, new=(), finished=(), computed=None, outputs=None, resumed=(), drafts=None):
    """`tokens`: request id -> scheduled tokens; `computed`, `outputs`: of the requests that are not new."""
    ids = [one for one in tokens if one not in {n.req_id for n in new}]
    cached = types.SimpleNamespace(
        req_ids=ids,
        resumed_req_ids=set(resumed),
        num_computed_tokens=[(computed or {}).get(one, 0) for one in ids],
        num_output_tokens=[(outputs or {}).get(one, 0) for one in ids],
    )
    return types.SimpleNamespace(
        scheduled_new_reqs=list(new),
        scheduled_cached_reqs=cached,
        finished_req_ids=set(finished),
        num_scheduled_tokens=dict(tokens),
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens=dict(drafts or {}),
    )


class Model:
    def __init__(self, W):
        self.W = W
        self.seen = []

    def compute_logits(self, hidden_states):
        self.seen.append(hidden_states.clone())
        return hidden_states @ self.W.T


class RunnerV1:
    """`step` is what a worker does: execute_model, then sample_tokens."""

    def __init__(self, W, seed=0):
        self.model = Model(W)
        self.device = "cpu"
        self.input_batch = types.SimpleNamespace(req_ids=[], req_id_to_index={})
        self.execute_model_state = None
        self.rng = torch.Generator().manual_seed(seed)

    def execute_model(self, scheduler_output):
        drafts = scheduler_output.scheduled_spec_decode_tokens
        rows = sum(1 + len(drafts.get(one, ())) for one in self.input_batch.req_ids)
        self.hidden = torch.randn(rows, self.model.W.shape[1], generator=self.rng)
        self.logits = self.model.compute_logits(self.hidden)
        self.unadapted = self.model.compute_logits(self.hidden)  # as for prompt log-probabilities

    def _sample(self, logits, spec_decode_metadata):
        ids = torch.full((len(self.input_batch.req_ids), 1), 5, dtype=torch.int32)
        logits.div_(2.0)  # samplers write to their logits
        return types.SimpleNamespace(sampled_token_ids=ids if self.ids is None else self.ids)

    def step(self, output, ids=None):
        self.ids = ids
        self.input_batch.req_ids = list(output.num_scheduled_tokens)
        stops = np.cumsum([0, *output.num_scheduled_tokens.values()])
        inputs = torch.zeros(int(stops[-1]) + 8, dtype=torch.int32)
        for name, stop in zip(output.num_scheduled_tokens, stops[1:].tolist(), strict=True):
            drafts = output.scheduled_spec_decode_tokens.get(name, ())
            inputs[stop - len(drafts) : stop] = torch.tensor(drafts, dtype=torch.int32)
        self.query_start_loc = types.SimpleNamespace(np=stops)
        self.input_ids = types.SimpleNamespace(gpu=inputs)
        self.execute_model(output)
        self.drawn_from = self.logits.clone()
        return self._sample(self.logits, None)
