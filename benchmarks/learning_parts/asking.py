"""What is asked of the memory's gate, and what it should do: the sets of `learning_data`, without any model.

Everything belongs to the corrections of one half, and a `family` of questions stays together in cross-validation.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from .correcting import lines

__all__ = ["KINDS", "Asked", "Half", "Kind", "Stored", "asked", "small_words", "stored"]

Half = Literal["fit", "report", "training"]
Kind = Literal["own", "paraphrase", "situation", "near_miss", "same_form", "unrelated", "harmless", "harmful"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A corrected question."""

    id: str
    text: str
    half: Half


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A question put to the memory."""

    kind: Kind
    text: str
    meant: str
    """the correction that should act; empty: none should"""
    family: str
    half: Half


def stored(*halves: Half) -> list[Stored]:
    """The corrections of these halves; "training": the questions of `gate_training.jsonl`."""
    rows = [(row, row["split"]) for row in lines("corrections")]
    rows += [(row, "training") for row in lines("gate_training")]
    return [Stored(row["id"], row["prompt"], half) for row, half in rows if half in halves]


def asked(half: Half) -> list[Asked]:
    """All that is asked of one half's corrections."""
    if half == "training":
        return [one for row in lines("gate_training") for one in _training(row)]
    corrections = {row["id"]: row for row in lines("corrections") if row["split"] == half}
    found: list[Asked] = []
    for row in corrections.values():
        kinds: list[tuple[Kind, list[str]]] = [
            ("own", [row["prompt"]]),
            ("paraphrase", row["paraphrases"]),
            ("situation", row["situations"]),
        ]
        found += [Asked(kind, text, row["id"], row["family"], half) for kind, texts in kinds for text in texts]
    others: tuple[tuple[Kind, str], ...] = (("near_miss", "correction"), ("same_form", "like"))
    for kind, field in others:
        for row in lines(kind):
            if row["split"] == half:
                found.append(Asked(kind, row["prompt"], "", corrections[row[field]]["family"], half))
    rest = [row["prompt"] for row in lines("unrelated") if row["split"] == half]
    return found + [Asked("unrelated", text, "", f"unrelated {i % 10}", half) for i, text in enumerate(rest)]


def small_words(half: Half) -> tuple[list[Stored], list[Asked]]:
    """Questions, and each with other small words: that ask the same, and that do not."""
    rows = [row for row in lines("small_words") if row["split"] == half]
    found: list[Asked] = []
    for row in rows:
        kinds: tuple[tuple[Kind, str], ...] = (("harmless", row["id"]), ("harmful", ""))
        found += [Asked(kind, text, meant, row["id"], half) for kind, meant in kinds for text in row[kind]]
    return [Stored(row["id"], row["prompt"], half) for row in rows], found


def _training(row: dict[str, object]) -> list[Asked]:
    name = str(row["id"])
    kinds: tuple[tuple[Kind, str, str], ...] = (
        ("paraphrase", "paraphrases", name),
        ("near_miss", "near_misses", ""),
    )
    return [
        Asked(kind, str(text), meant, name, "training")
        for kind, field, meant in kinds
        for text in row[field]  # type: ignore[attr-defined]
    ]
