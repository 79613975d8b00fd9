"""`pattern_type`: the rule of the SONA optimization guide ("Pattern-Based Routing"), with both its fallbacks.

    patterns = find_patterns(embedding, 3)
    if patterns and patterns[0].avg_quality > 0.8:  switch on its type, else the general model
    otherwise:                                      the default model

The guide trusts any nearest pattern, however far; here it must also be similar (`min_similarity`), else a query
unlike all that was seen would follow whichever pattern happens to be nearest.
"""

from __future__ import annotations

from ..config.settings import RoutingSettings
from .models import ModelCatalog
from .policy import Choice, QueryView, register

__all__ = ["PatternTypePolicy"]


@register("pattern_type")
class PatternTypePolicy:
    """Reasons: ``pattern:<type>``, ``general``, ``default:no_embedding``, ``default:no_pattern``,
    ``default:low_similarity``, ``default:low_quality``.
    """

    def __init__(self, settings: RoutingSettings, models: ModelCatalog) -> None:
        self._min_quality = settings.min_quality
        self._min_similarity = settings.min_similarity
        self._models = models

    def choose(self, view: QueryView, /) -> Choice:
        """The pattern's learned type decides, never the classifier's opinion of the single query."""
        doubt = self._doubt(view)
        if doubt is not None:
            return Choice(model=self._models.default_model(), reason=f"default:{doubt}")
        kind = view.patterns[0].pattern_type
        specialist = self._models.specialist(kind)
        if specialist is None:
            return Choice(model=self._models.general_model(), reason="general")
        return Choice(model=specialist, reason=f"pattern:{kind}")

    def _doubt(self, view: QueryView) -> str | None:
        if not view.located:
            return "no_embedding"
        if not view.patterns:
            return "no_pattern"
        nearest = view.patterns[0]
        if nearest.similarity < self._min_similarity:
            return "low_similarity"
        if not nearest.avg_quality > self._min_quality:
            return "low_quality"
        return None
