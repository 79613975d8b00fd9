"""Three things that a person may want of answers, as programs that judge a finished text.

Every reward is in [0, 1], and an empty or one-word answer gets 0. On training prompts (32, two samples each) the
model alone has a mean of .27 (concise), .34 (format) and .35 (lexical), with standard errors of .05; nothing was
taught before these were settled.

* **concise**: a finished, concise answer. With w words and an answer that ended by itself,

      r = min(1, (w - 2)/6, (60 - w)/30) clipped at 0, times 0.3 when the last character is none of . ! ?

  and 0 when it was cut off. The reward of `examples/live_adaptation.py`.

* **format**: a numbered list that a program can read, and nothing else. An item is a line ``N. text`` without
  bold marks, N counting up from 1, its text not that of an earlier item. With g items among l lines that are not
  empty (the last line of an answer that was cut off is left out when there are others),

      r = g/l * min(1, (g - 1)/2) clipped at 0

  so that a list needs three items and every line beside them costs.

* **lexical**: the reader is spoken to. With w words and n of them a form of "you" (you, your, yours, yourself and
  contractions; one within `APART` words of the last that counted does not count),

      r = min(1, `SPOKEN` n/w) * min(1, (w - 4)/12) clipped at 0

  so that about one "you" in twelve words is enough, and more of it earns nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["APART", "FAMILIES", "SPOKEN", "Family", "concise", "families", "lexical", "listed"]

APART = 4
SPOKEN = 12.0

_DATA = Path(__file__).parents[1] / "learning_data" / "reward_prompts.json"
_ITEM = re.compile(r"(\d+)\. (\S.*)")
_WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?")
_YOU = re.compile(r"(?:you|your|yours|yourself|yourselves|you['’](?:re|ll|ve|d))")


@dataclasses.dataclass(frozen=True)
class Family:
    """One preference: what is asked, and how an answer is judged."""

    name: str
    system: str
    max_tokens: int
    reward: Callable[[str, str], float]
    """(text, finish reason) -> [0, 1]"""
    train: tuple[str, ...]
    """prompts that get feedback"""
    unseen: tuple[str, ...]
    """prompts that are only measured"""


def concise(text: str, finish_reason: str) -> float:
    """Finished, a sentence, neither a word nor a lecture."""
    words = len(text.split())
    if finish_reason != "stop":
        return 0.0
    length = min(1.0, max(0.0, (words - 2) / 6), max(0.0, (60 - words) / 30))
    return length * (1.0 if text.strip().endswith((".", "!", "?")) else 0.3)


def listed(text: str, finish_reason: str) -> float:
    """A numbered list and nothing else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if finish_reason != "stop" and len(lines) > 1:
        lines.pop()
    items: list[str] = []
    for line in lines:
        found = _ITEM.fullmatch(line)
        if found and int(found[1]) == len(items) + 1 and "**" not in line and found[2].lower() not in items:
            items.append(found[2].lower())
    return len(items) / len(lines) * min(1.0, max(0.0, (len(items) - 1) / 2)) if lines else 0.0


def lexical(text: str, finish_reason: str) -> float:
    """The reader is spoken to."""
    words = _WORD.findall(text.lower())
    spoken, last = 0, -APART
    for place, word in enumerate(words):
        if _YOU.fullmatch(word) and place - last >= APART:
            spoken, last = spoken + 1, place
    long_enough = min(1.0, max(0.0, (len(words) - 4) / 12))
    return min(1.0, SPOKEN * spoken / len(words)) * long_enough if words else 0.0


FAMILIES = ("concise", "format", "lexical")

_ASKED: dict[str, tuple[str, int, Callable[[str, str], float]]] = {
    "concise": ("You answer in one short sentence.", 48, concise),
    "format": ("Reply with a plain numbered list: no introduction, no bold, one line an item.", 64, listed),
    "lexical": ("You are a friendly shop assistant who gives short practical tips.", 48, lexical),
}


def families() -> dict[str, Family]:
    """All of them, by name, with their prompts."""
    prompts = json.loads(_DATA.read_text(encoding="utf-8"))
    return {
        name: Family(name, *_ASKED[name], tuple(prompts[name]["train"]), tuple(prompts[name]["unseen"]))
        for name in FAMILIES
    }
