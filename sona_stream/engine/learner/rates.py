"""How fast is learned, and from what."""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["Mode", "Rates"]

Mode = Literal["off", "observe", "feedback", "auto"]


class Rates(Protocol):
    """The part of `SonaConfig` that the learner reads."""

    @property
    def micro_lora_rank(self) -> int: ...
    @property
    def micro_lora_lr(self) -> float: ...
    @property
    def quality_threshold(self) -> float: ...
    @property
    def base_lora_rank(self) -> int: ...
    @property
    def base_lora_lr(self) -> float: ...
    @property
    def ewc_lambda(self) -> float: ...
    @property
    def background_interval_ms(self) -> int: ...
