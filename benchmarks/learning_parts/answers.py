"""What sets of answers tell: reward, diversity, likelihood under the model alone, distance from it, and topic."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sona_stream.lora import Capture, LoraWeights

from .rewards import Family
from .serving import Answer

if TYPE_CHECKING:
    from .segments import FrozenModel

__all__ = [
    "UNRELATED",
    "Judge",
    "Judged",
    "bootstrap",
    "by_prompt",
    "distinct2_ratio",
    "mean_reward",
    "noise",
    "one_a_prompt",
    "relevance",
]

F64 = NDArray[np.float64]
RESAMPLES = 10_000
UNRELATED = "wikitext2"
_ORDERS = 20
_END = "<|im_end|>"


def by_prompt(answers: Sequence[Answer], family: Family) -> F64:
    """(prompts,) mean reward over the samples of each, by the order of the family's unseen prompts."""
    rewards: dict[str, list[float]] = {}
    for answer in answers:
        rewards.setdefault(answer.question, []).append(family.reward(answer.text, answer.finish_reason))
    return np.array([np.mean(rewards[prompt]) for prompt in family.unseen if prompt in rewards])


def mean_reward(answers: Sequence[Answer], family: Family) -> float:
    """Over all prompts and samples."""
    return float(np.mean([family.reward(answer.text, answer.finish_reason) for answer in answers]))


def noise(one: F64, other: F64) -> float:
    """Two standard errors of the difference of two means, from its spread over the prompts."""
    return float(2 * np.std(other - one, ddof=1) / np.sqrt(len(one)))


def bootstrap(differences: F64, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of paired ``differences`` (seeds, prompts); both are drawn anew each time."""
    rng = np.random.default_rng(seed)
    runs, prompts = differences.shape
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = differences[rng.integers(runs, size=runs)]
        means[i] = drawn[:, rng.integers(prompts, size=prompts)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def distinct2_ratio(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """Share of different word pairs, after over before, over equal numbers of pairs; the answers are taken in
    random orders, `_ORDERS` of them.
    """
    count = min(sum(max(0, len(a.text.split()) - 1) for a in part) for part in (before, after))
    if count == 0:
        return 0.0
    rng = random.Random(0)
    shares = [np.mean([_distinct2(part, count, rng) for _ in range(_ORDERS)]) for part in (before, after)]
    return float(shares[1] / shares[0])


def one_a_prompt(before: Sequence[Answer], after: Sequence[Answer]) -> float:
    """`distinct2_ratio` of the first answers to all prompts, of the second, and so on: the mean."""
    samples = zip(_by_sample(before), _by_sample(after), strict=False)
    return float(np.mean([distinct2_ratio(early, late) for early, late in samples]))


def _by_sample(answers: Sequence[Answer]) -> list[list[Answer]]:
    asked: dict[str, list[Answer]] = {}
    for answer in answers:
        asked.setdefault(answer.question, []).append(answer)
    return [list(one) for one in zip(*asked.values(), strict=False)]


def _distinct2(answers: Sequence[Answer], pairs: int, rng: random.Random) -> float:
    seen: list[tuple[str, str]] = []
    for answer in rng.sample(list(answers), len(answers)):
        seen += pairwise(answer.text.lower().split())
    return len(set(seen[:pairs])) / pairs


def relevance(answers: Sequence[Answer]) -> float:
    """Mean cosine of prompt and answer in the bundled static embedding."""
    from sona_stream_adapters.embedders.static import StaticEmbedder

    embedder = StaticEmbedder()
    asked = embedder.embed_many([answer.question for answer in answers])
    said = embedder.embed_many([answer.text or " " for answer in answers])
    return float(np.mean(np.sum(asked * said, axis=1)))


class Judged:
    """Means over the tokens of some answers."""

    def __init__(self, nll: float, kl: float) -> None:
        self.perplexity = float(np.exp(nll))
        """under the model alone"""
        self.kl = kl
        """KL(p || p_base) of the adapters that served them, nats per token"""


class Judge:
    """The model without adapters, which reads what adapted ones said. ``data``: where the unrelated text is; None:
    the standard library's source instead.
    """

    def __init__(self, frozen: FrozenModel, data: Path | None, segments: int) -> None:
        self.frozen = frozen
        self.text = "stdlib" if data is None else UNRELATED
        """which text that is"""
        self._data, self._count = data or Path(), segments

    def _unrelated(self) -> list[Capture]:
        return self.frozen.segments(self.text, self._data, self._count)

    def unrelated_texts(self) -> list[str]:
        """Of what no family is about."""
        tokenizer = self.frozen.model.tokenizer
        return [tokenizer.decode(segment.token_ids.tolist()) for segment in self._unrelated()]

    def unrelated(self, served: Sequence[LoraWeights | None], forced: LoraWeights | None) -> dict[str, float]:
        """Perplexity of these texts ``without`` an adapter, ``with`` what each of them was ``served``, and with the
        same one ``forced`` on all; how many were ``left_alone``.
        """
        segments = self._unrelated()
        return {
            "without": self.text_perplexity(segments, [None] * len(segments)),
            "with": self.text_perplexity(segments, served),
            "forced": self.text_perplexity(segments, [forced] * len(segments)),
            "left_alone": sum(weights is None for weights in served),
            "texts": len(segments),
        }

    def read(
        self, answers: Sequence[Answer], system: str, adapter: Callable[[str], LoraWeights | None] = lambda _: None
    ) -> Judged:
        """The end token counts where an answer ended by itself. ``adapter``: weights by the name in the header."""
        model, nll, kl, tokens = self.frozen.model, 0.0, 0.0, 0
        for answer in answers:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": answer.question}]
            text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            said = answer.text + (_END if answer.finish_reason == "stop" else "")
            prompt, ids = (model.tokenizer(part, add_special_tokens=False).input_ids for part in (text, said))
            if not ids:
                continue
            with torch.inference_mode():
                hidden = model.prefill(torch.tensor([prompt + ids]), model.new_cache())[0, len(prompt) - 1 : -1]
                base = torch.log_softmax(model.logits(hidden).float(), dim=-1)
                nll -= float(base.gather(1, torch.tensor(ids)[:, None]).sum())
                weights = adapter(answer.adapter)
                if weights is not None:
                    adapted = model.logits(_adapted(hidden, weights))
                    kl += _kl(torch.log_softmax(adapted.float(), dim=-1), base)
            tokens += len(ids)
        return Judged(nll / max(1, tokens), kl / max(1, tokens))

    def text_perplexity(self, segments: Sequence[Capture], adapters: Sequence[LoraWeights | None]) -> float:
        """Of running text, each segment under its own adapter."""
        nll, tokens, model = 0.0, 0, self.frozen.model
        for segment, weights in zip(segments, adapters, strict=True):
            hidden = torch.from_numpy(np.array(segment.hidden, dtype=np.float32))
            ids = torch.from_numpy(np.array(segment.token_ids, dtype=np.int64))
            with torch.inference_mode():
                adapted = hidden if weights is None else _adapted(hidden, weights)
                nll += float(torch.nn.functional.cross_entropy(model.logits(adapted).float(), ids, reduction="sum"))
            tokens += len(ids)
        return float(np.exp(nll / tokens))


def _adapted(hidden: torch.Tensor, weights: LoraWeights) -> torch.Tensor:
    return hidden + torch.from_numpy(weights.delta(hidden.float().numpy()))


def _kl(adapted: torch.Tensor, base: torch.Tensor) -> float:
    return float((adapted.exp() * (adapted - base)).sum())
