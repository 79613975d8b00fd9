"""Scorers: each judges one thing about an answer while it streams by; `combine` makes one quality of them.

A built-in scorer is a file with `create_scorer(settings)`, found by its entry point like anybody else's.
"""

from __future__ import annotations

from .combine import Combined, CombinedScoring, create_combined
from .form import FormScorer

__all__ = ["Combined", "CombinedScoring", "FormScorer", "create_combined"]
