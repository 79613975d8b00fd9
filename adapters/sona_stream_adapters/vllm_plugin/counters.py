"""What the plug-in counts. `sona_stats` shows it."""

from __future__ import annotations

import dataclasses

__all__ = ["Counters"]


@dataclasses.dataclass(slots=True)
class Counters:
    """Since the process began."""

    steps: int = 0
    """of the model, seen by the hook"""
    adapted_rows: int = 0
    """rows that an adapter changed"""
    mixed_rows: int = 0
    """rows that episodes changed"""
    mismatch: int = 0
    """steps passed through untouched because rows and requests did not add up"""
    bad_bindings: int = 0
    """requests whose `sona*` arguments could not be used"""
    missing_rows: int = 0
    """rows served without the adapter that their request names, because it is not here"""
    captured_tokens: int = 0
    """tokens written to the ring, or read from a given answer"""
    lost_rows: int = 0
    """rows of finished requests that were overwritten before they were fetched"""
    puts: int = 0
    drops: int = 0
    refused: int = 0
    """calls that were answered with an error"""
    rewraps: int = 0
    """times that the model was replaced or loaded again under the hook"""
    errors: int = 0
    """exceptions in the hook's own code"""
    disabled: str = ""
    """why the hook passes everything through; empty while it works"""
