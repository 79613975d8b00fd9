"""`fixed`: every request for `sona/auto` goes to the default model."""

from __future__ import annotations

from ..config.settings import RoutingSettings
from .models import ModelCatalog
from .policy import Choice, QueryView, register

__all__ = ["FixedPolicy"]


@register("fixed")
class FixedPolicy:
    """Patterns are still looked up and learned; they only have no say in the model."""

    def __init__(self, settings: RoutingSettings, models: ModelCatalog) -> None:
        self._models = models

    def choose(self, view: QueryView, /) -> Choice:
        """Reason ``fixed``."""
        return Choice(model=self._models.default_model(), reason="fixed")
