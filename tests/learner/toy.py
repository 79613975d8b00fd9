"""A tiny softmax language model in float64 with closed-form gradients, and a store in memory.

Written from the formulas alone: nothing here is shared with the product but its value types.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict

import numpy as np

from sona_stream.errors import CaptureGone, HostError
from sona_stream.events import Feedback, FeedbackOutcome, RouteDecision, Sampling, Trajectory
from sona_stream.lora import Capture, Curvature, Evaluation, LoraGradient, LoraWeights, Spectrum
from sona_stream.reference import REFERENCE_TEXT
from sona_stream.storing import CaptureHead

V, D, T = 13, 8, 6


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def stacked(captures):
    """The tokens of all captures: hidden (N, D), token ids (N,), temperatures (N, 1)."""
    temperature = np.repeat([one.temperature or 1.0 for one in captures], [len(one) for one in captures])
    hidden = np.concatenate([one.hidden for one in captures]).astype(np.float64)
    return hidden, np.concatenate([one.token_ids for one in captures]), temperature[:, None]


def by_capture(values, captures):
    return np.split(values, np.cumsum([len(one) for one in captures])[:-1])


class ToyHost:
    hidden_dim = D

    def __init__(self, seed=0, fingerprint="toy"):
        rng = np.random.default_rng(seed)
        self.W = rng.standard_normal((V, D)) * 0.7
        self.embedding = rng.standard_normal((V, D))
        self.mean = rng.standard_normal(D) * 1.5
        self.fingerprint = fingerprint
        self.adapters: dict[str, tuple[int, LoraWeights]] = {}
        self.put_log: list[tuple[str, int]] = []
        self.captures: dict[str, Capture] = {}
        self.calls: list[str] = []
        self.refuse_put = False
        self.poison: str | None = None
        self.reads_elsewhere = False
        """A toy's world is all of one kind: nothing in it is from elsewhere unless a test says so."""
        self.rng = np.random.default_rng(seed + 1)

    # --- the language model
    def hidden(self, prompt_ids, token_ids):
        before = [int(prompt_ids[-1]), *(int(t) for t in token_ids)]
        context = 0.5 * self.embedding[[int(p) for p in prompt_ids]].mean(axis=0)
        return np.asarray([self.mean + context + self.embedding[b] for b in before], dtype=np.float64)

    def logp(self, hidden, weights, temperature):
        """``temperature``: one for all rows or (rows, 1), and not 0."""
        changed = hidden if weights is None else hidden + self.delta(hidden, weights)
        return log_softmax(changed @ self.W.T / temperature)

    @staticmethod
    def delta(hidden, weights):
        out = 0.0
        for pair in (weights.micro, weights.base):
            if pair is not None:
                a, b = (np.asarray(m, dtype=np.float64) for m in (pair.lora_A, pair.lora_B))
                out = out + pair.scaling * (hidden @ a.T) @ b.T
        return out

    def answer(self, request_id, prompt_ids, *, key=None, temperature=1.0):
        """Draws T tokens under the adapter of `key` and keeps the capture."""
        version, weights = self.adapters.get(key, (0, None))
        tokens, logprobs = [], []
        for _ in range(T):
            row = self.logp(self.hidden(prompt_ids, tokens)[-1:], weights, temperature or 1.0)[0]
            token = int(self.rng.choice(V, p=np.exp(row)))
            tokens.append(token)
            logprobs.append(row[token])
        self.captures[request_id] = self.make(request_id, prompt_ids, tokens, logprobs, version, key, temperature)
        return tokens

    def make(self, request_id, prompt_ids, tokens, logprobs, version=0, key=None, temperature=1.0):
        return Capture(
            request_id=request_id,
            fingerprint=self.fingerprint,
            prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
            token_ids=np.asarray(tokens, dtype=np.int32),
            hidden=self.hidden(prompt_ids, tokens)[:-1].astype(np.float32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            adapter_versions=np.full(len(tokens), version, dtype=np.int32),
            adapter_key=key,
            temperature=temperature,
        )

    # --- the host's contract
    async def put_adapter(self, key, version, weights):
        if self.refuse_put or not weights.is_finite():
            raise HostError("refused")
        self.adapters[key] = (version, weights)
        self.put_log.append((key, version))

    async def drop_adapter(self, key):
        self.adapters.pop(key, None)

    async def capture(self, request_id):
        if request_id not in self.captures:
            raise CaptureGone(request_id)
        return self.captures[request_id]

    async def release(self, request_id):
        self.captures.pop(request_id, None)

    async def encode(
        self, prompt_ids, answer, *, request_id="", temperature=1.0, adapter_key=None, weights=None, hidden=False
    ):
        if isinstance(answer, str) and answer[:40] == REFERENCE_TEXT[:40] and not self.reads_elsewhere:
            raise HostError("a toy reads no encyclopaedia")
        self.calls.append("encode")
        tokens = [ord(c) % V for c in answer] if isinstance(answer, str) else [int(t) for t in answer]
        rows = self.logp(self.hidden(prompt_ids, tokens)[:-1], weights, temperature or 1.0)
        logprobs = rows[np.arange(len(tokens)), tokens]
        return self.make(request_id, prompt_ids, tokens, logprobs, 0, adapter_key, temperature)

    def loss(self, captures, signal, weights=None):
        """Value alone, for finite differences; the ratio is a constant at `signal.weights`."""
        weights = weights or signal.weights
        h, tokens, temperature = stacked(captures)
        p, p0 = self.logp(h, weights, temperature), self.logp(h, None, temperature)
        chosen = p[np.arange(len(tokens)), tokens]
        return signal.anchor * (np.exp(p) * (p - p0)).sum() - (self._factor(captures, signal) * chosen).sum()

    def _factor(self, captures, signal):
        """(tokens of all captures,)."""
        a = np.concatenate([np.asarray(one, dtype=np.float64) for one in signal.advantages])
        if signal.ratio_clip is None:
            return a
        h, tokens, temperature = stacked(captures)
        now = self.logp(h, signal.weights, temperature)[np.arange(len(tokens)), tokens]
        ratio = np.exp(now - np.concatenate([capture.logprobs for capture in captures]))
        low, high = signal.ratio_clip
        clipped = ((a > 0) & (ratio > high)) | ((a < 0) & (ratio < low))
        return np.where(clipped, 0.0, a * ratio)

    async def gradient(self, captures, signal):
        self.calls.append("gradient")
        pairs = [pair for pair in (signal.weights.micro, signal.weights.base) if pair is not None]
        factors = [(one.lora_A.astype(np.float64), one.lora_B.astype(np.float64), one.scaling) for one in pairs]
        h, tokens, temperature = stacked(captures)
        lp, lp0 = self.logp(h, signal.weights, temperature), self.logp(h, None, temperature)
        p, rows = np.exp(lp), np.arange(len(tokens))
        onehot = np.zeros_like(p)
        onehot[rows, tokens] = 1.0
        kl = (p * (lp - lp0)).sum(axis=1, keepdims=True)
        by_logit = self._factor(captures, signal)[:, None] * (p - onehot)
        by_logit += signal.anchor * p * (lp - lp0 - kl)
        G = by_logit @ self.W / temperature
        grads = [(scaling * (G @ B).T @ h, scaling * G.T @ (h @ A.T)) for A, B, scaling in factors]
        if self.poison == "gradient":
            grads[0][1][:] = np.nan
        arrays = [one.astype(np.float32) for pair in grads for one in pair]
        return LoraGradient(
            micro_A=arrays[0],
            micro_B=arrays[1],
            base_A=arrays[2] if len(arrays) > 2 else None,
            base_B=arrays[3] if len(arrays) > 2 else None,
            tokens=len(tokens),
            loss=self.loss(captures, signal),
            mean_kl_to_base=float(kl.mean()),
            mean_logprob=float(lp[rows, tokens].mean()),
        )

    async def curvature(self, captures, elsewhere=None):
        self.calls.append("curvature")
        hidden, tokens, temperature = stacked(captures)
        p = np.exp(self.logp(hidden, None, temperature))
        scores = (np.eye(V)[tokens] - p) @ self.W / temperature
        means = np.stack([rows.mean(axis=0) for rows in by_capture(scores, captures)]).astype(np.float32)
        values, vectors = np.linalg.eigh(scores.T @ scores / len(scores))
        mean, ridge = hidden.mean(axis=0), 1e-2 * (hidden**2).sum() / D
        row = np.linalg.solve(hidden.T @ hidden + ridge * np.eye(D), mean)
        contrast = None
        if elsewhere is not None:
            both = hidden.T @ hidden + len(hidden) / len(elsewhere) * elsewhere.T @ elsewhere
            contrast = np.linalg.solve(both + ridge * np.eye(D), mean)
            contrast = (contrast / (contrast @ mean)).astype(np.float32)
        spectrum = Spectrum(vectors.T[::-1].astype(np.float32), values[::-1].clip(1e-9).astype(np.float32), 0.0)
        rms = float(np.sqrt((hidden**2).mean()))
        values, vectors = np.linalg.eigh(hidden.T @ hidden / len(hidden))
        inputs = Spectrum(vectors.T[::-1].astype(np.float32), values[::-1].clip(1e-9).astype(np.float32), 0.0)
        row = (row / (row @ mean)).astype(np.float32)
        return Curvature(len(hidden), rms, row, spectrum, means, inputs, contrast)

    async def penalty(self, captures, reference, current, *, top_k=None):
        """By finite differences of the formula's own value, which are exact for a quadratic form of each factor."""
        self.calls.append("penalty")
        tokens = sum(map(len, captures))

        def value(weights):
            return self.half_variance(captures, reference, weights) * tokens

        grads = []
        for name in ("micro", "base"):
            pair = getattr(current, name)
            fields = ("lora_A", "lora_B")
            grads += [None if pair is None else self.slope(value, current, name, field) for field in fields]
        return LoraGradient(*grads, tokens, value(current), 0.0, 0.0)

    @staticmethod
    def slope(value, weights, name, field, by=1e-3):
        pair = getattr(weights, name)
        matrix = getattr(pair, field).astype(np.float64)
        out = np.zeros_like(matrix)
        for at in np.ndindex(*matrix.shape):
            ends = []
            for sign in (1, -1):
                moved = matrix.copy()
                moved[at] += sign * by
                ends.append(
                    value(dataclasses.replace(weights, **{name: dataclasses.replace(pair, **{field: moved})}))
                )
            out[at] = (ends[0] - ends[1]) / (2 * by)
        return out.astype(np.float32)

    async def predicted_kl(self, captures, old, new):
        self.calls.append("predicted_kl")
        return self.half_variance(captures, old, new)

    def half_variance(self, captures, old, new):
        h, _, temperature = stacked(captures)
        p = np.exp(self.logp(h, old, temperature))
        change = (self.delta(h, new) - self.delta(h, old)) @ self.W.T / temperature
        return float(0.5 * ((p * change**2).sum(axis=1) - (p * change).sum(axis=1) ** 2).mean())

    async def evaluate(self, captures, weights):
        self.calls.append("evaluate")
        h, tokens, temperature = stacked(captures)
        rows = np.arange(len(tokens))
        lp, lp0 = self.logp(h, weights, temperature), self.logp(h, None, temperature)
        kl = (np.exp(lp) * (lp - lp0)).sum(axis=1)
        ratio = np.linalg.norm(self.delta(h, weights), axis=1) / np.linalg.norm(h, axis=1)
        return Evaluation(
            mean_kl_to_base=float(kl.mean()),
            max_kl_to_base=float(kl.max()),
            logprobs=by_capture(lp[rows, tokens].astype(np.float32), captures),
            base_logprobs=by_capture(lp0[rows, tokens].astype(np.float32), captures),
            mean_delta_ratio=float(ratio.mean()),
            max_delta_ratio=float(ratio.max()),
            finite=bool(np.isfinite(kl).all()),
            collision=float((np.exp(lp).mean(axis=0) ** 2).sum()),
            base_collision=float((np.exp(lp0).mean(axis=0) ** 2).sum()),
        )


class MemoryWrites:
    """All of them or none: each may be the one before which the process dies."""

    def __init__(self, store):
        self.store, self.steps = store, []

    def expect_adapter(self, key, version, weights, moments):
        """It is no write by itself."""

    def __getattr__(self, name):
        if name not in (
            "put_capture",
            "drop_captures",
            "put_adapter",
            "set_current",
            "prune_adapters",
            "put_blob",
            "record_outcome",
        ):
            raise AttributeError(name)
        return lambda *args, **more: self.steps.append((name, args, more))

    async def commit(self):
        steps, self.steps = self.steps, []
        for name, _, _ in steps:
            self.store._step(name)
        for name, args, more in steps:
            await getattr(self.store, name)(*args, **more)


class MemoryStore:
    """The part of `Store` that the learner uses. It outlives learners, as a disk outlives processes."""

    def __init__(self):
        self.trajectories: dict[str, Trajectory] = {}
        self.feedbacks: dict[str, Feedback] = {}
        self.outcomes: dict[str, FeedbackOutcome] = {}
        self.kept = defaultdict(dict)
        self.heads: dict[tuple[str, str], CaptureHead] = {}
        self.seq = 0
        self.records: dict[tuple[str, int], object] = {}
        self.current: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.crash_before: str | None = None

    def _step(self, name):
        if self.crash_before == name:
            raise ConnectionAbortedError(f"crashed before {name}")

    async def trajectory(self, request_id, *, tenant=None):
        found = self.trajectories.get(request_id)
        return found if found and tenant in (None, found.tenant) else None

    async def pending_feedback(self):
        return [f for f in self.feedbacks.values() if f.id not in self.outcomes]

    async def outcome(self, feedback_id):
        return self.outcomes.get(feedback_id)

    async def record_outcome(self, outcome):
        self._step("record_outcome")
        self.outcomes[outcome.feedback_id] = outcome

    async def put_capture(self, key, capture, advantage, *, feedback_id):
        self._step("put_capture")
        self.kept[key].pop(feedback_id, None)
        self.kept[key][feedback_id] = (capture, advantage, feedback_id)
        self.seq += 1
        self.heads[key, feedback_id] = CaptureHead(self.seq, key, feedback_id, capture.fingerprint, time.time())

    async def drop_captures(self, *, key="", feedback_id=""):
        for own, kept in self.kept.items():
            for name in [name for name in kept if own == key or name == feedback_id]:
                del kept[name], self.heads[own, name]

    async def captures(self, key, *, limit):
        return list(self.kept[key].values())[-limit:]

    async def newest_captures(self, keys, wanted, *, limit):
        rows = [
            (self.heads[key, one[2]], one[0], one[1]) for key in keys for one in self.kept.get(key, {}).values()
        ]
        rows = sorted((row for row in rows if wanted(row[0])), key=lambda row: row[0].seq)
        return rows[-limit:]

    async def put_adapter(self, record):
        self._step("put_adapter")
        self.records[record.key, record.version] = record

    async def adapter(self, key, version):
        return self.records.get((key, version))

    async def adapters(self, key=None):
        rows = [r for r in self.records.values() if key in (None, r.key)]
        return sorted(rows, key=lambda r: (r.key, r.version))

    async def current_versions(self):
        return dict(self.current)

    async def set_current(self, key, version, *, reason):
        self._step("set_current")
        self.current[key] = version

    async def prune_adapters(self, key, *, keep, older=0, besides=0):
        every = [r.version for r in await self.adapters(key)]
        rows = [version for version in every if version not in (self.current.get(key), besides)]
        gone = rows[: max(0, len(rows) + 1 - keep)]
        good = [one for one in gone if self.records[key, one].status == "published"]
        stay = set()
        for rung in range(older):
            most = keep * 2 ** (rung + 1) if rung + 1 < older else math.inf
            stay |= set([one for one in good if keep * 2**rung <= every[-1] - one < most][:1])
        for version in set(gone) - stay:
            del self.records[key, version]

    def together(self):
        return MemoryWrites(self)

    async def put_blob(self, name, data):
        self._step("put_blob")
        self.blobs[name] = data() if callable(data) else data

    async def get_blob(self, name):
        return self.blobs.get(name)

    async def blob_names(self, prefix):
        return [name for name in self.blobs if name.startswith(prefix)]


@dataclasses.dataclass
class Rates:
    micro_lora_rank: int = 2
    micro_lora_lr: float = 1e-3
    quality_threshold: float = 0.5
    base_lora_rank: int = 4
    base_lora_lr: float = 1e-4
    ewc_lambda: float = 1000.0
    background_interval_ms: int = 3_600_000


class World:
    """A model, a store and clients: asks questions and gives feedback, as the proxy would."""

    def __init__(self, host=None, store=None):
        self.host, self.store = host or ToyHost(), store or MemoryStore()
        self.asked = 0

    def ask(self, tenant="default", *, prompt=(1, 2, 3), route=None, adapter=None, **more):
        self.asked += 1
        request_id = f"{tenant}-{self.asked}"
        route = route or RouteDecision(model="toy", reason="test")
        key = None if adapter is None else adapter.key
        tokens = self.host.answer(request_id, prompt, key=key)
        self.store.trajectories[request_id] = Trajectory(
            request_id=request_id,
            tenant=tenant,
            key_id="k",
            model="toy",
            route=route,
            adapter=adapter,
            sampling=Sampling(temperature=1.0),
            **{"prompt_ids": tuple(prompt), "token_ids": tuple(tokens), **more},
        )
        return request_id, tokens

    def judge(self, request_id, quality, *, tenant="default", kind="rating", correction=None):
        feedback = Feedback(
            id=f"f-{len(self.store.feedbacks)}",
            request_id=request_id,
            tenant=tenant,
            key_id="k",
            kind=kind,
            quality=quality,
            correction=correction,
        )
        self.store.feedbacks[feedback.id] = feedback
        return feedback
