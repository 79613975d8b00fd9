"""Adapters on the outputs of layers inside a local model, by adapter key: research. Importing this loads torch."""

from __future__ import annotations

from .birth import Births
from .learning import layered_gradient
from .measuring import layered_evaluation, layered_kl, layered_logprobs

__all__ = [
    "Births",
    "layered_evaluation",
    "layered_gradient",
    "layered_kl",
    "layered_logprobs",
]
