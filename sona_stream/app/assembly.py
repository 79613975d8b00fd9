"""Builds rooms from settings. Everything that comes through the plug-in door is loaded here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .. import plugins
from ..config.settings import Deployment, Settings
from ..engine import SonaConfig, SonaEngine
from ..errors import ConfigError
from ..protocols import AdapterResolver, Backend, Embedder, Handler, Router, TrajectorySink
from ..quality import Combined, create_combined
from ..routing import Discover, PolicyRouter, create_router, load_classifier
from ..stages import Meter, adapt, fallback, measure, overhead, record, route, score

__all__ = [
    "build_backends",
    "build_embedder",
    "build_patterns",
    "build_pipeline",
    "build_router",
    "build_scorers",
    "engine_config",
]

# The guide's "Quick Start": what a proxy learns with when `sona.engine` says nothing.
_QUICK_START = {"micro_lora_rank": 2, "base_lora_rank": 8, "micro_lora_lr": 0.001, "quality_threshold": 0.4}

_PROFILES: dict[str, Callable[[int], SonaConfig]] = {
    "realtime": SonaConfig.realtime,
    "batch": SonaConfig.batch,
    "research": SonaConfig.research,
    "edge": SonaConfig.edge,
}


def engine_config(settings: Settings, dim: int) -> SonaConfig:
    """`sona.engine`: the guide's quick start or one of its profiles, with single fields changed; both dimensions
    are those of the vectors the engine will see.
    """
    given = dict(settings.sona.engine)
    for name in ("hidden_dim", "hiddenDim", "embedding_dim", "embeddingDim"):
        if name in given:
            raise ConfigError(f"sona.engine.{name} cannot be set: it comes from the model")
    profile = given.pop("profile", None)
    if profile is not None and profile not in _PROFILES:
        raise ConfigError(f"sona.engine.profile is {profile!r}; it must be one of {', '.join(_PROFILES)}")
    chosen = {**_QUICK_START} if profile is None else _PROFILES[profile](dim).to_dict()
    chosen.update({SonaConfig.field_name(key): value for key, value in given.items()})
    return SonaConfig.from_dict({**chosen, "hidden_dim": dim, "embedding_dim": dim})


def build_embedder(settings: Settings) -> Embedder:
    """The embedder that `sona.routing.embedder` names."""
    routing = settings.sona.routing
    embedder: Embedder = plugins.load("embedders", routing.embedder)(dict(routing.embedder_options), settings)
    return embedder


def build_patterns(settings: Settings, embedder: Embedder) -> SonaEngine:
    """The engine over query embeddings: routing's memory."""
    return SonaEngine.with_config(engine_config(settings, embedder.dim))


def build_router(
    settings: Settings, embedder: Embedder, patterns: SonaEngine, discover: Discover | None = None
) -> PolicyRouter:
    """The policy that `sona.routing.policy` names. ``discover``: what a wildcard's upstream lists."""
    classifier = load_classifier()
    type_embedder = None
    if embedder.name != classifier.embedder:  # the types were learned on the bundled table
        type_embedder = plugins.load("embedders", "static")({}, settings)
    return create_router(settings, embedder, patterns, classifier, type_embedder=type_embedder, discover=discover)


def build_scorers(settings: Settings) -> Combined:
    """All scorers, or those that `sona.scoring.weights` names."""
    scoring = settings.sona.scoring
    names = list(scoring.weights) or plugins.available("scorers")
    return create_combined([plugins.load("scorers", name)(scoring) for name in names])


def build_backends(settings: Settings) -> dict[str, list[Backend]]:
    """``model_name`` -> its deployments' backends, in the file's order."""
    backends: dict[str, list[Backend]] = {}
    for deployment in settings.models:
        backends.setdefault(deployment.model_name, []).append(_build_backend(deployment, settings))
    return backends


def _build_backend(deployment: Deployment, settings: Settings) -> Backend:
    backend: Backend = plugins.load("backends", deployment.provider)(deployment, settings.sona)
    return backend


def build_pipeline(
    settings: Settings,
    backends: Mapping[str, Sequence[Backend]],
    *,
    router: Router,
    embedder: Embedder,
    sink: TrajectorySink,
    resolver: AdapterResolver,
    scorers: Combined,
    meter: Meter,
) -> Handler:
    """Overhead -> route -> record -> fallback -> adapt -> score -> measure -> backend."""

    def stacked(backend: Backend) -> Handler:
        return adapt(resolver)(score(scorers.begin)(measure(meter, backend.name)(backend)))

    groups = {name: [stacked(backend) for backend in group] for name, group in backends.items()}
    routed = route(router, embedder)(record(sink, settings.sona.storage)(fallback(groups)))
    return overhead(meter, frozenset(backends))(routed)
