"""Routing: from a query's embedding and what was learned to the model that answers, and why."""

from __future__ import annotations

from . import fixed_policy, pattern_policy  # noqa: F401  (they register themselves)
from .models import Discover, ModelCatalog
from .pattern_type import TypeClassifier, TypeVote, load_classifier
from .policy import Choice, Policy, QueryView, create_policy, policies, register
from .router import Patterns, PolicyRouter, create_router

__all__ = [
    "Choice",
    "Discover",
    "ModelCatalog",
    "Patterns",
    "Policy",
    "PolicyRouter",
    "QueryView",
    "TypeClassifier",
    "TypeVote",
    "create_policy",
    "create_router",
    "load_classifier",
    "policies",
    "register",
]
