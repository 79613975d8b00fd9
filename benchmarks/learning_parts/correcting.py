"""The protocol of `correction`: who asks what, in which order, and what is written down.

One request at a time, greedy, to one server; adapters are frozen, so that nothing but the memory can change an
answer. Two end users share a tenant: A corrects, B only asks. What comes out is text only; `correction` judges
it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plan import ROOT, say
from .rewards import families
from .serving import ADMIN, Answer, Client, Server

__all__ = ["DATA", "PARAPHRASES", "Counts", "Protocol", "lines"]

DATA = ROOT / "benchmarks" / "learning_data"
WARM = 0.7
PARAPHRASES = "paraphrases"
"""what a server with the contextual encoder recognises, in its own words"""

Row = Mapping[str, Any]
Turns = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Counts:
    """How much is asked. The defaults are those of a full run."""

    each: int | None = None
    """so many corrections of each half instead of all of them, and of all that hangs on them"""
    halves: tuple[str, ...] = ("fit", "report")
    answer: int = 64
    """tokens at most of an answer that a correction may decide, as are the next two"""
    glance: int = 32
    """of one that is only compared"""
    long: int = 192
    """of a long one; corrections have up to 25 tokens, long ones up to 76"""
    further: int | None = None
    """long answers and conversations of each half; None: as many as ``each``"""
    undone: int = 20
    stored: int = 1000
    """corrections of one user in use when the other one asks for the last time"""
    warm: int = 50
    """corrected prompts that are asked at a temperature"""
    warm_samples: int = 4

    @classmethod
    def quick(cls) -> Counts:
        """A figure for every row, of the report half alone."""
        return cls(
            each=5,
            halves=("report",),
            answer=32,
            glance=16,
            long=96,
            further=1,
            undone=3,
            stored=20,
            warm_samples=1,
        )


def lines(name: str, folder: Path = DATA) -> list[dict[str, Any]]:
    """One file of `learning_data`."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def some(rows: Sequence[Row], each: int | None, halves: Sequence[str]) -> list[Row]:
    """All of these halves, in their own order, or the first so many of each."""
    if each is None:
        return [row for row in rows if row["split"] in halves]
    return [row for half in halves for row in [r for r in rows if r["split"] == half][:each]]


class Protocol:
    """Runs it."""

    def __init__(self, serving: Server, counts: Counts = Counts()) -> None:
        self.serving, self.counts = serving, counts
        self.corrections = self._some("corrections", counts.each)
        known = {row["id"] for row in self.corrections}
        self.same_form = [row for row in lines("same_form") if row["like"] in known]
        self.near_miss = [row for row in lines("near_miss") if row["correction"] in known]
        self.unrelated = self._some("unrelated", counts.each)
        self.newer = [row for row in lines("contradictions") if row["correction"] in known]
        further = counts.each if counts.further is None else counts.further
        self.long, self.turns = self._some("long_answers", further), self._some("multi_turn", further)

    def _some(self, name: str, each: int | None) -> list[Row]:
        return some(lines(name), each, self.counts.halves)

    async def run(self) -> dict[str, Any]:
        """-> for each set of prompts, a list of records with ``id``, ``split`` and the texts that it needs; and
        what the server ``recognises``: unless that is paraphrases, nothing else.
        """
        keys, url = self.serving.keys, self.serving.base_url
        async with Client(url, keys["a"]) as a, Client(url, keys["b"]) as b, Client(url, keys[ADMIN]) as operator:
            memory = (await operator.get("/v1/sona/stats"))["memory"]
            told: dict[str, Any] = {"recognises": memory["recognises"]}
            if told["recognises"] != PARAPHRASES:
                return told
            await operator.post("/v1/sona/freeze")
            told["before"] = await self._glances(a)
            told["own_before"] = await self._ask_all(a, self.corrections)
            say("correction: all prompts asked without corrections")
            told["next"] = await self._correct_all(a)
            say("correction: all corrected")
            told["moved"] = await self._ask_all(a, self.corrections)
            told["other_user"] = await self._ask_all(b, self.corrections)
            say("correction: corrected prompts asked by both")
            for part in ("paraphrases", "situations"):
                told[part] = await self._ask_texts(a, self.corrections, part)
            say("correction: paraphrases asked")
            told["after"] = await self._glances(a)
            say("correction: other prompts asked again")
            told["warm"] = await self._warm(a)
            told["undone"] = await self._undo(a)
            told["newest"] = await self._newest(a)
            told["long"] = await self._long(a)
            told["turns"] = await self._turns(a)
            say("correction: undone, contradicted, long answers, conversations")
            told["crowd"] = await self._crowd(a, b, operator)
        return told

    async def _ask(
        self, client: Client, messages: str | Turns, tokens: int | None = None, **options: Any
    ) -> Answer:
        """``tokens``: `Counts.answer` when it is None."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        limit = self.counts.answer if tokens is None else tokens
        return await client.chat(turns, max_tokens=limit, **{"temperature": 0, **options})

    async def _ask_all(self, client: Client, rows: Iterable[Row]) -> list[dict[str, Any]]:
        return [_record(row, await self._ask(client, row["prompt"])) for row in rows]

    async def _ask_texts(self, client: Client, rows: Iterable[Row], part: str) -> list[dict[str, Any]]:
        return [_record(row, await self._ask(client, text)) for row in rows for text in row[part]]

    async def _glances(self, client: Client) -> dict[str, list[dict[str, Any]]]:
        sets = {"same_form": self.same_form, "unrelated": self.unrelated, "near_miss": self.near_miss}
        return {
            name: [_record(row, await self._ask(client, row["prompt"], self.counts.glance)) for row in rows]
            for name, rows in sets.items()
        }

    async def _correct(
        self, client: Client, messages: str | Turns, answer: str, tokens: int | None = None
    ) -> tuple[Answer, Answer]:
        """Asks, corrects, and asks the same at once -> both answers."""
        said = await self._ask(client, messages, tokens)
        await client.feedback(said.request_id, correction=answer)
        return said, await self._ask(client, messages, tokens)

    async def _correct_all(self, client: Client) -> list[dict[str, Any]]:
        told = []
        for row in self.corrections:
            before, after = await self._correct(client, row["prompt"], row["answer"])
            told.append({**_record(row, after), "before": before.text})
        return told

    async def _warm(self, client: Client) -> list[dict[str, Any]]:
        """Corrected prompts at a temperature."""
        rows = [row for row in self.corrections if row["split"] == "report"][: self.counts.warm]
        return [
            _record(row, await self._ask(client, row["prompt"], temperature=WARM, seed=seed))
            for row in rows
            for seed in range(self.counts.warm_samples)
        ]

    async def _undo(self, client: Client) -> list[dict[str, Any]]:
        """Takes the newest corrections back, one by one; they are given again afterwards."""
        latest = self.corrections[-self.counts.undone :]
        told = []
        for row in reversed(latest):
            await client.post("/v1/feedback/undo")
            told.append(_record(row, await self._ask(client, row["prompt"])))
        for row in latest:
            await self._correct(client, row["prompt"], row["answer"])
        return told

    async def _newest(self, client: Client) -> list[dict[str, Any]]:
        """A second correction of the same prompt; undone, the first one holds again."""
        prompts, told = {row["id"]: row["prompt"] for row in self.corrections}, []
        for row in self.newer:
            prompt = prompts[row["correction"]]
            _, newer = await self._correct(client, prompt, row["answer"])
            await client.post("/v1/feedback/undo")
            told.append({**_record(row, newer), "back": (await self._ask(client, prompt)).text})
        return told

    async def _long(self, client: Client) -> list[dict[str, Any]]:
        told = []
        for row in self.long:
            _, said = await self._correct(client, row["prompt"], row["answer"], self.counts.long)
            others = [(await self._ask(client, text, self.counts.long)).text for text in row["paraphrases"]]
            told.append({**_record(row, said), "paraphrases": others})
        return told

    async def _turns(self, client: Client) -> list[dict[str, Any]]:
        told = []
        for row in self.turns:
            before = await self._ask(client, row["other"], self.counts.glance)
            _, said = await self._correct(client, row["messages"], row["answer"])
            reworded, other = [
                await self._ask(client, row[part], tokens)
                for part, tokens in (("reworded", None), ("other", self.counts.glance))
            ]
            kept = other.text == before.text
            told.append({**_record(row, said), "reworded": reworded.text, "other_kept": kept})
        return told

    async def _crowd(self, a: Client, b: Client, operator: Client) -> dict[str, Any]:
        """A corrects until `Counts.stored` corrections are in use, first on prompts that B then asks and on others
        that mean the same -> how many are ``stored`` and ``in_use``, how many were ``wanted``, and what B was told,
        at the lengths of before.
        """
        texts, wanted, given = self._crowded(), self.counts.stored, 0
        while (missing := wanted - (in_use := await self._in_use(operator))) > 0 and given < len(texts):
            some = texts[given : given + missing]
            for number, text in enumerate(some, start=given):
                said = await self._ask(a, text, 1)
                await a.feedback(said.request_id, correction=f"That is what note {number} of user A says.")
            given += len(some)
        stored = (await operator.get("/v1/sona/stats"))["memory"]["episodes"]
        asked = await self._ask_all(b, self.corrections)
        asked += [_record(row, await self._ask(b, row["prompt"], self.counts.glance)) for row in self.same_form]
        return {"wanted": wanted, "stored": stored, "in_use": in_use, "asked": asked}

    def _crowded(self) -> list[str]:
        """What A corrects at last: first what is near B's prompts, then what there is besides."""
        texts = [row["prompt"] for row in self.same_form]
        texts += [text for row in self.corrections for part in ("paraphrases", "situations") for text in row[part]]
        texts += [row["prompt"] for name in ("near_miss", "unrelated") for row in lines(name)]
        texts += [prompt for family in families().values() for prompt in (*family.train, *family.unseen)]
        return list(dict.fromkeys(texts))

    async def _in_use(self, operator: Client) -> int:
        """Episodes that no newer one stands for."""
        listed = await operator.get("/v1/sona/memory?limit=100000")
        return sum(row["used"] for row in listed["data"])

    def go(self) -> dict[str, Any]:
        """`run` to its end."""
        return asyncio.run(self.run())


def _record(row: Row, answer: Answer) -> dict[str, Any]:
    return {"id": row["id"], "split": row["split"], "text": answer.text, "episodes": answer.episodes}
