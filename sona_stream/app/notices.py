"""What a configuration cannot do, said once at the start."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.settings import Settings
from .engine_settings import outside_guide

__all__ = ["notices"]


def notices(settings: Settings, adaptable: Sequence[str]) -> list[str]:
    """One line for each choice that limits another. ``adaptable``: models whose hidden states are in reach."""
    sona = settings.sona
    lines = outside_guide(settings)
    if sona.learning == "off":
        lines.append("sona.learning is off: feedback is taken and kept, nothing is learned from it")
    elif not adaptable:
        lines.append("no model here has its hidden states in reach: feedback moves routing, no weights")
    elif sona.learning == "observe":
        lines.append("sona.learning is observe: versions are computed and checked, but not served")
    if sona.storage == "none":
        lines.append("sona.storage is none: patterns are forgotten with this process")
        if adaptable and sona.learning != "off":
            lines.append(
                "sona.storage is none: feedback is learned from while the model still holds the answer, "
                f"the last {sona.learner.capture_mb} MiB of them (sona.learner.capture_mb), and later refused "
                "with 410; corrections that wait and answers for replay are lost with this process. "
                "sona.storage: features keeps them"
            )
    return lines
