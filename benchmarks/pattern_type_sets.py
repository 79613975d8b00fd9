"""The labelled queries of `pattern_types.py`. Training and test come from different sources, never the same one.

``DIR`` holds one folder a data set, each with its README (source, licence). Test sources: HumanEval (MIT), MT-Bench
(Apache-2.0), AgentVerse logic grids (Apache-2.0), MMLU-Pro (MIT), TriviaQA (Apache-2.0), Banking77 (CC-BY-4.0,
PolyAI), ChatterBot corpus (BSD-3-Clause), and queries written by hand for this project before anything was trained.
Training sources: MBPP, GSM8K, MATH, Natural Questions, OpenBookQA, ARC, CommonsenseQA, CommonGen, CLINC150,
PandaLM, anyio's and httpx's source, and the seed grammar.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Labelled", "assemble_test", "read_test", "training"]

_SEEDS = json.loads((Path(__file__).parent / "data/pattern_type_seeds.json").read_text(encoding="utf-8"))
SLOTS: dict[str, list[str]] = _SEEDS["slots"]
TEMPLATES: dict[str, list[str]] = _SEEDS["templates"]

Labelled = tuple[str, str, str]
"""(type, source, text)."""

_MT_BENCH = {  # rows of llmbar_proc's MT-Bench prompts in order of appearance, by MT-Bench's own categories
    "CodeGen": (4, 5, 8, 25, 31, 32, 49),  # coding
    "Reasoning": (0, 1, 3, 7, 9, 17, 21, 27, 44, 52),  # maths, reasoning
    "General": (10, 15, 20, 26, 28, 30, 34, 38, 42, 45),  # extraction
    "Factual": (6, 16, 18, 19, 23, 24, 36, 37, 48, 50),  # stem, humanities
    "Creative": (2, 11, 12, 13, 14, 22, 29, 33, 35, 39, 40, 41, 43, 46, 47, 51, 53, 54),  # writing, roleplay
}
_PANDALM = {  # labelled by hand; those not named are General
    "Creative": (28, 36, 40, 44, 45, 58, 69, 71, 85, 87, 88, 89, 91, 92, 93, 94, 98, 100, 101),
    "Factual": (16, 17, 41, 43),
    "Reasoning": (13,),
    "left out": (10, 15, 18, 23, 47, 54, 65, 66, 68, 73, 74, 95, 97, 103, 105),
}
_CLINC_UNCLEAR = {
    "definition", "calculator", "measurement_conversion", "spelling", "tell_joke", "nutrition_info", "calories",
    "fun_fact", "distance", "timezone", "exchange_rate", "mpg", "date", "time", "next_holiday", "oos", "plug_type",
}  # fmt: skip
_CLINC_TALK = {"yes", "no", "maybe"}
_CHATTERBOT = ("greetings", "conversations", "emotion", "botprofile", "gossip")


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _sample(rng: random.Random, items: list[str], count: int) -> list[str]:
    unique = sorted(set(items))
    return rng.sample(unique, min(count, len(unique)))


def _prompts(path: Path, subset: str | None = None) -> list[str]:
    rows = _rows(path)
    return list(dict.fromkeys(row["prompt"] for row in rows if subset is None or row["subset"] == subset))


def read_test(path: Path) -> list[Labelled]:
    """The committed test set."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(row["type"], row["source"], row["text"]) for row in rows]


def assemble_test(data: Path, chatterbot: Path, handwritten: Path) -> Iterator[Labelled]:
    """How the committed test set was made; `chatterbot` is the unpacked corpus' ``data/english``."""
    import yaml

    rng = random.Random(7)
    tasks: dict[str, list[str]] = {}
    for row in _rows(data / "llmrouter9/llmrouter9.jsonl.gz"):
        tasks.setdefault(row["task"], []).append(row["question"])
    for kind, source, count in (
        ("CodeGen", "human_eval", 25), ("Reasoning", "agentverse-logicgrid", 12), ("Factual", "trivia_qa", 25),
    ):  # fmt: skip
        yield from ((kind, source, text) for text in _sample(rng, tasks[source], count))
    questions = _rows(data / "mmlu_pro/questions.jsonl.gz")
    maths = [row["question"] for row in questions if row["category"] == "math"]
    yield from (("Reasoning", "mmlu_pro_math", text) for text in _sample(rng, maths, 20))
    prompts = _prompts(data / "llmbar_proc/pairs.jsonl.gz", "MT-Bench")
    yield from ((kind, "mt_bench", prompts[i]) for kind, chosen in _MT_BENCH.items() for i in chosen)
    banking = [row["text"] for row in _rows(data / "banking77/banking77.jsonl.gz") if row["split"] == "test"]
    yield from (("General", "banking77", text) for text in _sample(rng, banking, 20))
    openings = []
    for name in _CHATTERBOT:
        tree = yaml.safe_load((chatterbot / f"{name}.yml").read_text(encoding="utf-8"))
        openings += [str(talk[0]) for talk in tree["conversations"]]
    yield from (("Conversational", "chatterbot", text) for text in _sample(rng, openings, 30))
    for line in handwritten.read_text(encoding="utf-8").splitlines():
        kind, text = line.split("\t", 1)
        yield kind, "handwritten", text


def training(data: Path, *, seeds_per_type: int = 1500) -> list[Labelled]:
    """All training queries; no test source among them."""
    rng = random.Random(11)
    out = list(_from_benchmarks(data, rng))
    out += _from_pandalm(data)
    out += _from_clinc(data, rng)
    out += _from_code(data, rng)
    for kind, templates in TEMPLATES.items():
        texts = {_expand(rng.choice(templates), rng) for _ in range(seeds_per_type)}
        out += [(kind, f"seeds-{kind}", text) for text in sorted(texts)]
    return out


def _from_benchmarks(data: Path, rng: random.Random) -> Iterator[Labelled]:
    tasks: dict[str, list[str]] = {}
    for row in _rows(data / "llmrouter9/llmrouter9.jsonl.gz"):
        tasks.setdefault(row["task"], []).append(row["question"])
    for kind, source, count in (
        ("CodeGen", "mbpp", 300), ("Reasoning", "gsm8k", 300), ("Reasoning", "math", 300),
        ("Factual", "natural_qa", 400), ("Factual", "openbook_qa", 100), ("Factual", "arc_challenge", 150),
        ("Factual", "commonsense_qa", 80), ("Creative", "commongen", 30),
    ):  # fmt: skip
        yield from ((kind, source, text) for text in _sample(rng, tasks[source], count))


def _from_pandalm(data: Path) -> list[Labelled]:
    kinds = {i: kind for kind, chosen in _PANDALM.items() for i in chosen}
    prompts = enumerate(_prompts(data / "pandalm/pairs.jsonl.gz"))
    rows = [(kinds.get(i, "General"), "pandalm", text) for i, text in prompts]
    return [row for row in rows if row[0] != "left out"]


def _from_clinc(data: Path, rng: random.Random) -> list[Labelled]:
    talk, general = [], []
    for row in _rows(data / "clinc150/clinc150.jsonl.gz"):
        if row["split"] != "train" or row["label"] in _CLINC_UNCLEAR:
            continue
        chat = row.get("domain") == "small_talk" or row["label"] in _CLINC_TALK
        (talk if chat else general).append(row["text"])
    return [("Conversational", "clinc150-talk", text) for text in _sample(rng, talk, 600)] + [
        ("General", "clinc150-tasks", text) for text in _sample(rng, general, 600)
    ]


def _from_code(data: Path, rng: random.Random) -> list[Labelled]:
    asks = (
        "", "Explain this code:\n", "What does this function do?\n", "Add a docstring:\n", "Find the bug:\n",
        "Write tests for this:\n", "complete the following\n", "Refactor:\n",
    )  # fmt: skip
    out = []
    for row in _rows(data / "stream_text/code_httpx.jsonl.gz") + _rows(data / "stream_text/code_anyio.jsonl.gz"):
        starts = [match.start() for match in re.finditer(r"^(?:    )?(?:async )?def \w+", row["text"], re.M)]
        for start in rng.sample(starts, min(3, len(starts))):
            lines = row["text"][start:].splitlines()[: rng.randint(2, 18)]
            out.append(("CodeGen", "source-code", rng.choice(asks) + "\n".join(lines)))
    return out


_INNERMOST = re.compile(r"\{([^{}]*)\}")


def _expand(template: str, rng: random.Random) -> str:
    """Slot values may hold braces themselves, so they are put in last."""
    drawn: list[str] = []

    def choose(match: re.Match[str]) -> str:
        options = match[1].split("|")
        option = rng.choice(options)
        if all(name in SLOTS for name in options):
            drawn.append(rng.choice(SLOTS[option]))
            return f"\0{len(drawn) - 1}\0"
        return option

    text = template
    while _INNERMOST.search(text):
        text = _INNERMOST.sub(choose, text)
    text = re.sub("\0(\\d+)\0", lambda match: drawn[int(match[1])], text)
    text = re.sub(r" +", " ", text).strip()
    form = rng.random()
    if form < 0.25:
        return text.lower()
    return text[:1].upper() + text[1:] if form < 0.75 else text
