"""A vLLM engine in this process with the plug-in on it, and the same model in transformers as the reference."""

from __future__ import annotations

import dataclasses

import numpy as np


def adapter_arrays(d, rank=2, seed=0, scale=0.05, base_rank=0):
    rng = np.random.default_rng(seed)

    def pair(r):
        return (
            (rng.standard_normal((r, d)) / np.sqrt(d)).astype(np.float32),
            (rng.standard_normal((d, r)) * scale).astype(np.float32),
        )

    arrays = {}
    for name, r in (("micro", rank), ("base", base_rank)):
        if r:
            arrays[f"{name}.lora_A"], arrays[f"{name}.lora_B"] = pair(r)
    return arrays


def delta(arrays, hidden, scalings=None):
    """(n, d) float64: what the adapter adds."""
    scalings = scalings or {}
    out = np.zeros(hidden.shape)
    for name in ("micro", "base"):
        if f"{name}.lora_A" in arrays:
            A, B = (arrays[f"{name}.lora_{x}"].astype(np.float64) for x in "AB")
            out += scalings.get(name, 1.0) * (hidden @ A.T) @ B.T
    return out


@dataclasses.dataclass
class Answer:
    ids: list
    logits: np.ndarray
    """(T, V) of each step, as the model said them"""
    cached: int
    """prompt tokens that a prefix cache spared"""


class Engine:
    def __init__(self, folder, **options):
        from vllm import LLM

        settings = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": 8,
            "max_logprobs": -1,
            "logprobs_mode": "raw_logits",
            "seed": 0,
            "disable_log_stats": True,
        }
        self.llm = LLM(model=str(folder), **settings | options)
        self.info = self.call("install")
        self.d, self.v = self.info["hidden_dim"], self.info["vocab_size"]

    def call(self, name, *args, ok=True):
        (answer,) = self.llm.collective_rpc(f"sona_{name}", args=args)
        assert answer["ok"] is ok, answer
        return answer

    @property
    def worker(self):
        return self.llm.llm_engine.model_executor.driver_worker.worker

    @property
    def service(self):
        return self.worker.__dict__["_sona_calls"]._service

    def put(self, key, version, arrays, **facts):
        from sona_stream_adapters.vllm_plugin.codec import pack

        return self.call("put", key, version, pack(arrays, facts))

    def generate(self, prompts, extras=None, *, tokens=8, logits=True, **sampling):
        """Prompts as lists of ids, `extras` one dict (or None) a prompt -> Answers."""
        from vllm import SamplingParams

        extras = extras or [None] * len(prompts)
        sampling = {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True, "detokenize": False, **sampling}
        if logits:
            sampling["logprobs"] = -1
        params = [SamplingParams(**sampling, extra_args=extra) for extra in extras]
        outputs = self.llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)
        return [self._answer(out, logits) for out in outputs]

    def tell_ends(self):
        """Workers hear of a request's end with the next step, which an idle offline engine does not take."""
        self.generate([[1]], tokens=1, logits=False)

    def _answer(self, out, logits):
        one = out.outputs[0]
        rows = np.zeros((0, self.v))
        if logits:
            rows = np.array([[step[i].logprob for i in range(self.v)] for step in one.logprobs])
        return Answer(list(one.token_ids), rows, out.num_cached_tokens or 0)

    def close(self):
        self.llm.llm_engine.engine_core.shutdown()


def capture(engine, rid, hidden=True):
    from sona_stream_adapters.vllm_plugin.codec import capture_from, unpack

    answer = engine.call("capture", rid, hidden)
    if answer["state"] == "running":
        engine.tell_ends()
    for _ in range(50):  # a long one's log-probabilities are taken in several calls
        answer = answer if answer["state"] != "running" else engine.call("capture", rid, hidden)
    assert answer["state"] == "done", answer
    return capture_from(*unpack(answer["blob"]), hidden_dim=engine.d)


class Reference:
    """The same weights in transformers, float32 in, float64 after the last hidden state."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.W = self.model.lm_head.weight.detach().double().numpy()

    def hidden(self, ids):
        """(len(ids), d) final states."""
        with self.torch.inference_mode():
            out = self.model.model(self.torch.tensor([list(ids)])).last_hidden_state[0]
        return out.double().numpy()

    def logits(self, prompt, answer, arrays=None, scalings=None):
        """(T, V): what each token of `answer` was drawn from."""
        h = self.hidden([*prompt, *answer])[len(prompt) - 1 : -1]
        if arrays is not None:
            h = h + delta(arrays, h, scalings)
        return h @ self.W.T

    def states(self, prompt, answer):
        """(T, d) that `answer` was drawn from."""
        return self.hidden([*prompt, *answer])[len(prompt) - 1 : -1]
