"""English words whose exchange turns one question into another, and words that say nothing of what is asked."""

from __future__ import annotations

from importlib import resources

__all__ = [
    "ALIKE",
    "CLASSES",
    "COUNTING",
    "EMPTY",
    "HANDLING",
    "LEANING",
    "NEGATIONS",
    "NUMBER_WORDS",
    "OPENING",
    "PREFIXES",
    "SPOKEN",
    "UNIQUE",
    "WRITTEN",
]


def _sections() -> dict[str, list[str]]:
    """Name -> lines of `english.txt`."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in resources.files(__package__).joinpath("english.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            lines = found.setdefault(line.strip("[]").split(":")[0], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def _classes(lines: list[str]) -> dict[str, tuple[tuple[int, int], ...]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for dimension, line in enumerate(lines):
        for side, words in enumerate(line.split("|")):
            for word in words.split():
                found.setdefault(word, []).append((dimension, side))
    return {word: tuple(places) for word, places in found.items()}


_SECTIONS = _sections()
_WORDS = {name: " ".join(lines).split() for name, lines in _SECTIONS.items()}

EMPTY = frozenset(_WORDS["empty"])
"""Left out when the words of two questions are compared; some of them count in other ways."""
ALIKE = {word: line.split()[0] for line in _SECTIONS["alike"] for word in line.split()}
"""Word -> the one that stands for all of its meaning"""
OPENING = frozenset(_WORDS["opening"])
"""Left out of a question's wording at its beginning"""
SPOKEN = frozenset(_WORDS["spoken"])
"""After these any word may be what is asked about: "how do you spell please"."""
NEGATIONS = frozenset(_WORDS["negations"])
LEANING = frozenset(_WORDS["leaning"])
"""A question with one of these may speak of something said before."""
WRITTEN = frozenset(_WORDS["written"])
"""What is put into a conversation and then spoken of"""
HANDLING = frozenset(_WORDS["handling"])
"""What is done with it"""
UNIQUE = frozenset(_WORDS["unique"])
""""The sun" is the same, whatever was said before."""
COUNTING = frozenset(_WORDS["counting"])
PREFIXES = tuple(_WORDS["prefixes"])
"""What turns a word into its opposite, where the rest is a word of the other question."""
NUMBER_WORDS = dict(pair.split("=") for pair in _WORDS["numbers"])
"""Word -> its value in digits"""
CLASSES = _classes(_SECTIONS["opposites"] + _SECTIONS["kinds"])
"""Word -> (dimension, side): two questions on different sides of one dimension are not the same question."""
