"""A vLLM engine in this process, run by the interpreter of vLLM's environment; takes one JSON command a line and
answers with one.

    python engine_child.py MODEL plain|plugin

`plain` is vLLM without any plug-in. Both have the same clock around the worker's methods.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

STREAMS = 8
PROMPT = 38
RANKS = {"micro": 2, "base": 8}
"""of the adapters, as a proxy's learner makes them"""


class Child:
    def __init__(self, folder: str, *, plugin: bool) -> None:
        from timing import StepTimer, WorkerCpu
        from vllm import LLM

        self.llm = LLM(
            model=folder,
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=32,
            seed=0,
            disable_log_stats=True,
        )
        worker = self.llm.llm_engine.model_executor.driver_worker.worker
        self.timer = StepTimer(worker.model_runner)
        self.timer.below()
        if plugin:
            self.info = self.call("install")
        self.timer.above()
        if plugin:
            self._put_adapters()
        self.cpu = WorkerCpu(worker)
        self.rng = np.random.default_rng(1)
        self.vocabulary = self.llm.model_config.get_vocab_size()
        self.prompts = self.rng.integers(100, self.vocabulary, (64, PROMPT)).tolist()
        self.rids = 0

    def call(self, name: str, *args: Any) -> dict[str, Any]:
        (answer,) = self.llm.collective_rpc(f"sona_{name}", args=args)
        if not answer["ok"]:
            raise RuntimeError(f"sona_{name}: {answer['error']}")
        return dict(answer)

    def _put_adapters(self) -> None:
        """One a stream of each kind: `small` cannot reach the norm cap, `large` has to be measured each step."""
        from sona_stream_adapters.vllm_plugin.codec import pack

        for kind, size, ranks in (("small", 0.1, RANKS), ("large", 2.0, RANKS), ("micro", 0.1, {"micro": 2})):
            for i in range(STREAMS):
                self.call("put", f"{kind}{i}", 1, pack(adapter(self.info["hidden_dim"], size, ranks, seed=i)))

    def generate(self, streams: int, tokens: int, *, key: str | None, capture: bool) -> list[str]:
        """Runs so many streams to their ends. Returns their capture ids."""
        from vllm import SamplingParams

        params, rids = [], []
        for i in range(streams):
            extra: dict[str, Any] = {}
            if key is not None:
                extra["sona"] = f"{key}{i}"
            if capture:
                self.rids += 1
                rids.append(f"r{self.rids}")
                extra["sona_rid"] = rids[-1]
            params.append(
                SamplingParams(
                    temperature=0.8,
                    max_tokens=tokens,
                    ignore_eos=True,
                    detokenize=False,
                    extra_args=extra or None,
                )
            )
        prompts = [{"prompt_token_ids": prompt} for prompt in self.prompts[:streams]]
        self.llm.generate(prompts, params, use_tqdm=False)
        return rids

    def round(self, *, streams: int, tokens: int, key: str | None = None, capture: bool = False) -> dict[str, Any]:
        """CPU of the worker, and of steps that only decode their medians."""
        self.cpu.take()
        self.timer.take()
        self.generate(streams, tokens, key=key, capture=capture)
        steps = np.array(self.timer.take())
        return {
            "cpu_us_per_token": self.cpu.take() / (streams * tokens) * 1e6,
            "step_us": float(np.median(steps[:, 0]) * 1e6),
            "wrap_us": float(np.median(steps[:, 1]) * 1e6),
            "wrap_us_mean": float(steps[:, 1].mean() * 1e6),
        }

    def lesson(self) -> dict[str, Any]:
        """64 captured tokens that were never asked about: fetched, their gradient, the same again, all in steps of
        a batch of 8 that ran just before.
        """
        from sona_stream_adapters.vllm_plugin.codec import pack, unpack

        self.timer.take()
        rids = self.generate(STREAMS, 32, key="small", capture=True)
        step = float(np.median([whole for whole, _ in self.timer.take()]))
        self.generate(1, 1, key=None, capture=False)  # with it the worker hears of the ends
        began = time.perf_counter()
        taken = [unpack(self.call("capture", rid, False)["blob"]) for rid in rids[:2]]
        fetched = time.perf_counter() - began
        handles = [facts["handle"] for _, facts in taken]
        arrays = adapter(self.info["hidden_dim"], 0.1, RANKS, seed=0)
        for i, (one, _) in enumerate(taken):
            arrays[f"advantages_{i}"] = np.ones(len(one["token_ids"]), np.float32)
        blob = pack(arrays, {"anchor": 0.1, "ratio_clip": [0.8, 1.25]})
        tokens = sum(len(one["token_ids"]) for one, _ in taken)
        assert tokens == 64, tokens
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            self.call("gradient", handles, blob, {})
            seconds.append(time.perf_counter() - began)
        return {
            "step_ms": step * 1e3,
            "fetch_steps": fetched / step,
            "gradient_steps": seconds[0] / step,
            "again_steps": seconds[1] / step,
        }

    def stats(self) -> dict[str, Any]:
        """The plug-in's counters: a hook that disabled itself costs nothing and must not look good."""
        return {name: value for name, value in self.call("stats").items() if isinstance(value, int | str)}


def adapter(d: int, size: float, ranks: dict[str, int], seed: int) -> dict[str, Any]:
    """Random factors whose change of a state is at most `size` times its length."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, rank in ranks.items():
        A, B = np.linalg.qr(rng.standard_normal((d, rank)))[0].T, np.linalg.qr(rng.standard_normal((d, rank)))[0]
        arrays[f"{name}.lora_A"] = A.astype(np.float32)
        arrays[f"{name}.lora_B"] = (B * size / len(ranks)).astype(np.float32)
    return arrays


def main() -> None:
    folder, kind = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    child = Child(folder, plugin=kind == "plugin")
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        found = getattr(child, command.pop("do"))(**command)
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
