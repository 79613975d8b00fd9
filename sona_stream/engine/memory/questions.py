"""What a request asks, as one text that stands by itself.

A correction belongs to a question, wherever in a conversation it is asked: "How long is the refund window?" is the
same after small talk. "And for Italy?" is not: it means what was said before. So the last user message alone is the
question, unless it leans on the conversation; then the earlier user messages, back to one that stands by itself,
are put before it.

Between the two are questions such as "Who prepares the papers?", one or two words that say something (of Chinese
and the like up to six characters), no name and no number, and those that point: "Write a unit test for this
function" (`pointing`). They are taken as they stand, but what was said before is kept beside them, as it is beside
those that lean (`Question.before`), and where something was said before on both sides, it must have come to the
same (`context`).
So a correction given in one conversation does not act in another about something else. One given on a first message
acts in any later turn that asks the same, as people expect who have said it once.

The model's own answers have no part in it: they differ from one time to the next. Both vectors and the words that
the gate compares are of that text. System and developer messages are kept apart: they must agree, too. Where an
image, a recording or a file is part of what is asked, or of what it may mean, there is no question: nothing would
be known of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...episodes import Question
from .pointing import points
from .tokens import split_words, unspaced
from .wordlists import CLASSES, EMPTY, LEANING
from .words import stem

__all__ = ["leans", "question_of"]

_MOST_BACK = 4
_MOST_BEFORE = 4096
"""Characters: the encoder reads no more."""
_SYSTEM = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_VAGUE = 2
"""Different words that say something, up to which a question without a name may mean what was said before."""
_CHARACTERS = 3
"""of scripts without spaces, about as much as a word"""
_BEGINNINGS = {
    "and",
    "but",
    "or",
    "so",
    "then",
    "also",
    "why",
    "ok",
    "okay",
    "yes",
    "no",
    "now",
    "more",
    "continue",
}
_ABOUT = (("what", "about"), ("how", "about"), ("what", "if"), ("why", "not"))
_DEFINITE = {"the", "its", "his", "her", "their"}
_OBJECTS = {"it", "this", "that", "these", "those", "them", "one", "him", "her"}
"""At the end of a short message they stand for something said before: "explain that"."""
_POINTING = {"this", "that", "these", "those", "same", "other", "such", "there"}


def question_of(messages: Sequence[Mapping[str, Any]], prompt: str | None = None) -> Question | None:
    """Of a chat's messages, or of a plain prompt; None where what is asked is not all text."""
    if prompt is not None:
        return Question(prompt)
    users = [message for message in messages if message.get("role") == "user"]
    if any(not _is_text(m) for m in (*users[-1:], *(m for m in messages if m.get("role") in _SYSTEM))):
        return None
    system = "\n".join(filter(None, (_text(m) for m in messages if m.get("role") in _SYSTEM)))
    asked = [_text(m) for m in users]
    if not asked:
        return Question(_text(messages[-1]) if messages else "", system)
    parts = [asked[-1]]
    for earlier in reversed(asked[:-1][-_MOST_BACK:]):
        if not leans(parts[0]):
            break
        if earlier.strip() and earlier.strip() != parts[0].strip():
            parts.insert(0, earlier)
    last = asked[-1]
    dependent = len(users) > 1 and (leans(last) or _vague(last) or points(last, _earlier(asked)))
    if dependent and not all(map(_is_text, users)):
        return None
    before = parts[:-1] or (_earlier(asked) if dependent else [])
    return Question("\n".join(parts), system, "\n".join(before)[-_MOST_BEFORE:])


def leans(text: str) -> bool:
    """Whether a message seems to mean something only after what was said before it."""
    words = split_words(text)
    plain = [word for word, _ in words]
    if not plain:
        return True
    if plain[0] in _BEGINNINGS or tuple(plain[:2]) in _ABOUT:
        return True
    said = [word for word in plain if word not in EMPTY and word not in LEANING]
    if not said:
        return True
    if any(named for _, named in words) or len(said) > 8:
        return False
    if _leaning(plain) or (plain[-1] in _OBJECTS and len(said) <= 2):
        return True
    # "What is the capital?": one definite thing, and nothing that says of what
    return len(said) == 1 and any(plain[i] in _DEFINITE and plain[i + 1] == said[0] for i in range(len(plain) - 1))


def _vague(text: str) -> bool:
    words = split_words(text)
    said = {stem(word) for word, _ in words if word not in EMPTY}
    characters = sum(map(unspaced, said))
    specific = any(named for _, named in words) or any(word[0].isdigit() for word, _ in words)
    return len(said) - characters + characters / _CHARACTERS <= _VAGUE and not specific


def _earlier(asked: Sequence[str]) -> list[str]:
    """The messages before the last that say something, but for the same asked again."""
    last = asked[-1].strip()
    return [
        text
        for text in asked[:-1][-_MOST_BACK:]
        if text.strip() != last and any(word not in EMPTY for word, _ in split_words(text))
    ]


def _leaning(words: Sequence[str]) -> bool:
    """A pronoun for which nothing before it in the message stands."""
    for i, word in enumerate(words):
        if word in LEANING and not any(w not in EMPTY and w not in LEANING for w in words[:i]):
            follows = words[i + 1] if i + 1 < len(words) else ""
            named = follows != "" and follows not in EMPTY and follows not in CLASSES
            # "this function": named at once; "is there": speaks of nothing
            if not (word == "there" or (word in _POINTING and named)):
                return True
    return False


def _is_text(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return all(part.get("type", "text") in _TEXT_PARTS for part in parts if isinstance(part, Mapping))


def _text(message: Mapping[str, Any]) -> str:
    """Of its content, or of the text parts of a content list, one a line."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(part for part in parts if isinstance(part, str))
