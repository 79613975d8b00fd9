"""The uncased WordPiece tokenizer of all-MiniLM-L6-v2, from the shipped vocabulary, with bounded work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["MAX_CHARS", "VOCAB", "clip", "load_tokenizer", "well_formed"]

VOCAB = Path(__file__).parent / "data" / "vocab.txt"
MAX_CHARS = 4096
"""Longer texts keep this many characters, half from either end: instructions stand at the beginning or the end."""


def load_tokenizer(vocab: Path = VOCAB) -> Tokenizer:
    """Equal to the original's fast tokenizer without special tokens (test: tests/embedders)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    tokenizer = Tokenizer(WordPiece.from_file(str(vocab), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def clip(text: str, limit: int = MAX_CHARS) -> str:
    """`text`, or its two ends with a space between them when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} {text[-(limit // 2) :]}"


def well_formed(text: str) -> str:
    """Lone surrogates (JSON may carry them) cannot be encoded: each becomes a question mark."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
