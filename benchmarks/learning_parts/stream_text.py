"""The texts that a model adapts to, each in the order of its source.

All but one are files of ``DATA/stream_text`` (`benchmarks/data/README.md`: sources, licences, fields); `stdlib` is
the source of the Python that runs this, its top-level modules by name.
"""

from __future__ import annotations

import gzip
import json
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["DOMAINS", "SHIFT", "DataMissing", "file_of", "texts"]

DOMAINS = ("gsm8k_style", "shakespeare", "code_anyio", "pubmedqa", "wikitext2", "stdlib")
SHIFT = ("wikitext2", "pubmedqa", "legalbench", "code_anyio", "shakespeare")
"""Order of the forgetting test, which then returns to the first"""

_NAMES_NO_TEXT = ("task", "answer", "licence", "index")


class DataMissing(RuntimeError):
    """A domain's file is not there; the message names it and the option."""


def file_of(domain: str, data: Path) -> Path:
    """Where a domain's text is; that of `stdlib` is nowhere in ``data``."""
    return data / "stream_text" / f"{domain}.jsonl.gz"


def texts(domain: str, data: Path) -> Iterator[str]:
    """Documents of one domain. Raises DataMissing."""
    if domain == "stdlib":
        yield from _standard_library()
        return
    file = file_of(domain, data)
    if not file.is_file():
        raise DataMissing(f"{file} is not there (--data names the folder that holds stream_text)")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield _TEXT.get(domain, _plain)(json.loads(line)).strip() + "\n\n"


def _plain(row: dict[str, Any]) -> str:
    return str(row["text"])


def _gsm8k(row: dict[str, Any]) -> str:
    return f"{row['question']}\n{row['answer']}"


def _pubmed(row: dict[str, Any]) -> str:
    return "\n".join([row["question"], *row["contexts"], row["answer"]])


def _legal(row: dict[str, Any]) -> str:
    parts = [str(value) for name, value in row.items() if name not in _NAMES_NO_TEXT and isinstance(value, str)]
    return "\n".join([*parts, str(row["answer"])])


_TEXT: dict[str, Callable[[dict[str, Any]], str]] = {
    "gsm8k_style": _gsm8k,
    "pubmedqa": _pubmed,
    "legalbench": _legal,
}


def _standard_library() -> Iterator[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(folder.glob("*.py")):
        yield file.read_text(encoding="utf-8", errors="replace").strip() + "\n\n"
