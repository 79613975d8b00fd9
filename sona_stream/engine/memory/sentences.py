"""What a message asks for, where it asks for several things: "How long is it? And do you ship to Norway?"."""

from __future__ import annotations

import re

from .tokens import split_words
from .wordlists import HANDLING

__all__ = ["requests"]

_BETWEEN = re.compile(r"(?<=[^\s?!.;][?!.;])[\"')\]]*\s+|(?<=[\u3002\uff1f\uff01\n])")
_ASKS = ("?", "\uff1f")
_COMMANDS = HANDLING | {"tell", "give", "list", "name", "show", "answer", "say", "compare"}
_LEADING = {
    "please",
    "kindly",
    "and",
    "then",
    "also",
    "now",
    "so",
    "but",
    "or",
    "ok",
    "okay",
    "first",
    "next",
    "finally",
}


def requests(text: str) -> list[str]:
    """Its questions and commands; none of a text that has only one."""
    found = [one for one in _BETWEEN.split(text) if one and (one.rstrip().endswith(_ASKS) or _commands(one))]
    return found if len(found) > 1 else []


def _commands(sentence: str) -> bool:
    first = next((word for word, _ in split_words(sentence) if word not in _LEADING), "")
    return first in _COMMANDS
