"""Names the type of a query: CodeGen, Reasoning, Factual, Creative, Conversational or General.

Softmax regression on the static embedding and a few lexical features. Trained and judged by
`benchmarks/pattern_types.py`; training and test queries come from different sources.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..errors import StateError
from ..events import PATTERN_TYPES, PatternType
from .features import DIM as LEXICAL_DIM
from .features import lexical

__all__ = ["TypeClassifier", "TypeVote", "load_classifier"]

_WEIGHTS = Path(__file__).parent / "data" / "pattern_types.npz"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TypeVote:
    """The most probable type, its probability, and all probabilities."""

    type: PatternType
    probability: float
    probabilities: Mapping[PatternType, float]


class TypeClassifier:
    """`weights` (dim + lexical, 6) float32, `bias` (6,). Pure: the same query gives the same vote."""

    def __init__(self, weights: NDArray[np.float32], bias: NDArray[np.float32], *, embedder: str, dim: int) -> None:
        """`embedder` and `dim` name the embedding space the weights were learned in. Raises ValueError."""
        if weights.shape != (dim + LEXICAL_DIM, len(PATTERN_TYPES)) or bias.shape != (len(PATTERN_TYPES),):
            raise ValueError(
                f"weights must be ({dim + LEXICAL_DIM}, {len(PATTERN_TYPES)}) and bias ({len(PATTERN_TYPES)},), "
                f"got {weights.shape} and {bias.shape}"
            )
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("weights and bias must be finite")
        self.embedder = embedder
        self.dim = dim
        self._embedding_part = np.ascontiguousarray(weights[:dim], np.float32)
        self._lexical_part = np.ascontiguousarray(weights[dim:], np.float32)
        self._bias = bias.astype(np.float32)

    def parameters(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(weights, bias) as given to the constructor."""
        return np.vstack([self._embedding_part, self._lexical_part]), self._bias.copy()

    def classify(self, query: str, embedding: NDArray[np.float32]) -> TypeVote:
        """`embedding` (dim,) of `query` by the embedder the weights were learned with. A blank query is General."""
        if embedding.shape != (self.dim,):
            raise ValueError(f"embedding must have shape ({self.dim},), got {embedding.shape}")
        if not query.strip():
            return _vote(np.array([float(kind == "General") for kind in PATTERN_TYPES]))
        logits = embedding @ self._embedding_part + lexical(query) @ self._lexical_part + self._bias
        odds = np.exp(logits - logits.max())
        return _vote(odds / odds.sum())


def _vote(probabilities: NDArray[np.floating]) -> TypeVote:
    best = int(probabilities.argmax())
    return TypeVote(
        type=PATTERN_TYPES[best],
        probability=float(probabilities[best]),
        probabilities=dict(zip(PATTERN_TYPES, map(float, probabilities), strict=True)),
    )


def load_classifier(path: Path | None = None) -> TypeClassifier:
    """The bundled weights, or those in `path`. Raises StateError when the file cannot be used."""
    source = path or _WEIGHTS
    try:
        with source.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            types, embedder, dim = about["types"], str(about["embedder"]), int(about["dim"])
            weights, bias = file["weights"].astype(np.float32), file["bias"].astype(np.float32)
        if tuple(types) != PATTERN_TYPES:
            raise ValueError(f"its types are {types}")
        return TypeClassifier(weights, bias, embedder=embedder, dim=dim)
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise StateError(f"the pattern type weights in {source} cannot be used: {error}") from error
