"""One arm of a reward test: a tenant learns from rewards, its control from the same rewards in another order."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sona_stream.lora import LoraWeights
from sona_stream.store import peek

from .answers import Judge, mean_reward
from .plan import Run, say
from .rewards import Family
from .serving import ADMIN, Answer, Client, Server, server
from .students import Student

__all__ = ["RESEARCH", "Arm", "answers_of", "measure", "served_weights"]

RESEARCH: Mapping[str, Any] = {
    "micro_lora_rank": 2,
    "base_lora_rank": 16,
    "micro_lora_lr": 0.002,
    "base_lora_lr": 0.0002,
    "ewc_lambda": 2000,
    "quality_threshold": 0.2,
    "pattern_clusters": 100,
    "trajectory_capacity": 10_000,
    "background_interval_ms": 900_000,
}
"""The guide's research profile."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is taught, and under which settings."""

    name: str
    family: Family
    seed: int
    feedbacks: tuple[int, ...]
    """after how many the unseen prompts are asked; the last ends the arm"""
    full: int
    """of them the one that is measured with all samples, and with the control"""
    samples: int = 4
    control: bool = True
    sona: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"engine": dict(RESEARCH)})
    unseen: int | None = None
    """only so many of the unseen prompts"""


def measure(arm: Arm, run: Run, judge: Judge) -> dict[str, Any]:
    """Runs one arm on a fresh server; see `_Course` for what it gives."""
    tenants = ["learn", "control"] if arm.control else ["learn"]
    with server(tenants, threads=run.threads, sona=arm.sona) as serving:
        return asyncio.run(_Course(arm, serving, judge).go())


class _Course:
    """-> ``before``, ``after`` and ``control``: answers to unseen prompts without feedback, after ``full`` of it,
    and of the control; ``points``: reward, distance from the model alone and perplexity under it, by number of
    feedbacks; ``unrelated``: perplexity of other text, see `Judge.unrelated`; ``seconds``.
    """

    def __init__(self, arm: Arm, serving: Server, judge: Judge) -> None:
        self.arm, self.serving, self.judge = arm, serving, judge
        self.prompts = arm.family.unseen[: arm.unseen]
        self.began = time.monotonic()

    async def go(self) -> dict[str, Any]:
        arm, told = self.arm, dict[str, Any]()
        async with AsyncExitStack() as stack:
            student = await stack.enter_async_context(self._student("learn"))
            placebo = await stack.enter_async_context(self._student("control")) if arm.control else None
            operator = await stack.enter_async_context(Client(self.serving.base_url, self.serving.keys[ADMIN]))
            before = await student.measure(self.prompts, arm.samples, self._draw(0))
            self._say(f"mean reward {mean_reward(before, arm.family):.2f} without feedback")
            told["before"], told["points"] = _plain(before), {"0": self._point(before)}
            for number, feedbacks in enumerate(arm.feedbacks, start=1):
                full = feedbacks == arm.full
                lessons = [student.teach(feedbacks)]
                if placebo is not None and feedbacks <= arm.full:
                    lessons.append(placebo.teach(feedbacks, permuted=True))
                await asyncio.gather(*lessons)
                await operator.settled()
                samples = arm.samples if full else max(1, arm.samples // 2)
                found = await student.measure(self.prompts, samples, self._draw(number))
                told["points"][str(feedbacks)] = self._point(found)
                self._say(f"mean reward {mean_reward(found, arm.family):.2f} after {feedbacks}")
                if full:
                    told["after"] = _plain(found)
                    told |= await self._judged(student, found)
                    if placebo is not None:
                        other = await placebo.measure(self.prompts, arm.samples, self._draw(number + 50))
                        told["control"] = _plain(other)
                        self._say(f"mean reward {mean_reward(other, arm.family):.2f} of the control")
        told["seconds"] = time.monotonic() - self.began
        return told

    def _student(self, tenant: str) -> Student:
        return Student(self.serving.base_url, self.serving.keys[tenant], self.arm.family, self.arm.seed)

    def _draw(self, number: int) -> int:
        return 1_000_000 + 100_000 * self.arm.seed + 1000 * number

    def _point(self, answers: Sequence[Answer]) -> dict[str, float]:
        """``ppl`` and ``kl`` are of every second answer."""
        read = self.judge.read(answers[::2], self.arm.family.system, served_weights(self.serving.state))
        return {"reward": mean_reward(answers, self.arm.family), "kl": read.kl, "ppl": read.perplexity}

    async def _judged(self, student: Student, after: Sequence[Answer]) -> dict[str, Any]:
        """What served most of the answers, and what becomes of other text."""
        names = [answer.adapter for answer in after]
        adapter = max(sorted(set(names)), key=names.count)
        weights = served_weights(self.serving.state)
        served = [weights(await student.adapter_for(text)) for text in self.judge.unrelated_texts()]
        return {"adapter": adapter, "unrelated": self.judge.unrelated(served, weights(adapter))}

    def _say(self, what: str) -> None:
        say(f"{self.arm.name}, seed {self.arm.seed}, {time.monotonic() - self.began:4.0f} s: {what}")


def served_weights(state: Path) -> Callable[[str], LoraWeights | None]:
    """Name of an adapter as the header has it -> its weights; None for the model alone."""

    @functools.cache
    def weights(name: str) -> LoraWeights | None:
        if name == "none":
            return None
        key, _, version = name.rpartition("@")
        return peek.read_adapter(state, key, int(version)).weights

    return weights


def _plain(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(answer) for answer in answers]


def answers_of(told: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """Back from JSON."""
    return [Answer(**each) for each in told]
