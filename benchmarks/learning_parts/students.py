"""A tenant that is taught one family's preference, and its control."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from .rewards import Family
from .serving import Answer, Client

__all__ = ["POOL", "SAMPLES", "TEMPERATURE", "Student"]

SAMPLES = 4
TEMPERATURE = 0.7
AT_ONCE = 8
POOL = 16
"""A control's rewards are permuted within so many requests."""


class Student(Client):
    """A tenant that asks one family's prompts and judges the answers by its reward."""

    def __init__(self, base_url: str, key: str, family: Family, seed: int) -> None:
        super().__init__(base_url, key)
        self.family, self.seed, self.given = family, seed, 0
        self._random, self._order = (random.Random(f"{what} {family.name} {seed}") for what in ("pools", "prompts"))
        self._prompts: list[str] = []

    async def ask(self, prompt: str, seed: int) -> Answer:
        """One sampled answer."""
        messages = [{"role": "system", "content": self.family.system}, {"role": "user", "content": prompt}]
        options = {"max_tokens": self.family.max_tokens, "temperature": TEMPERATURE, "seed": seed}
        return await self.chat(messages, **options)

    async def adapter_for(self, text: str) -> str:
        """What would serve a request of this text, as the header names it. Nothing is learned of it."""
        messages = [{"role": "user", "content": text}]
        asked = await self.chat(messages, headers={"x-sona-learn": "off"}, max_tokens=1)
        return asked.adapter

    async def measure(self, prompts: Sequence[str], samples: int, seed: int) -> list[Answer]:
        """``samples`` answers to each prompt, in the order of the prompts."""
        turn = asyncio.Semaphore(2 * AT_ONCE)

        async def one(prompt: str, number: int) -> Answer:
            async with turn:
                return await self.ask(prompt, number)

        return list(await asyncio.gather(*(one(p, seed + i) for p in prompts for i in range(samples))))

    async def teach(self, until: int, *, permuted: bool = False) -> None:
        """Asks training prompts and judges the answers until ``until`` were judged in all; the same prompts in the
        same order for every student of a seed. Permuted: the rewards of each `POOL` of requests change places.
        """
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> Answer:
            async with turn:
                return await self.ask(self._prompt(number), 100_000 * self.seed + number)

        asked = [asyncio.create_task(one(number)) for number in range(self.given, until)]  # in this order
        pool: list[Answer] = []
        for answering in asyncio.as_completed(asked):
            pool.append(await answering)
            self.given += 1
            if not permuted or len(pool) == POOL or self.given == until:
                rewards = [self.family.reward(answer.text, answer.finish_reason) for answer in pool]
                if permuted:
                    self._random.shuffle(rewards)
                for answer, value in zip(pool, rewards, strict=True):
                    await self.feedback(answer.request_id, value=value)
                pool.clear()

    def _prompt(self, number: int) -> str:
        """Pass after pass over the training prompts, each in an order of its own."""
        while len(self._prompts) <= number:
            self._prompts += self._order.sample(self.family.train, len(self.family.train))
        return self._prompts[number]
