"""Builds rooms from settings. Everything that comes through the plug-in door is loaded here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from .. import plugins
from ..config.settings import CONTEXTUAL_MODEL, Deployment, Settings
from ..engine import SonaEngine
from ..engine.memory import EpisodeMemory
from ..episodes import KeepsEpisodes
from ..errors import SonaError
from ..protocols import AdapterResolver, Backend, Embedder, EpisodeRecall, Handler, Router, Store, TrajectorySink
from ..quality import Combined, FormScorer, create_combined
from ..routing import Discover, Patterns, PolicyRouter, create_router, load_classifier
from ..stages import Meter, adapt, fallback, measure, overhead, recall, record, replica, route, score
from .engine_settings import engine_config
from .hosts import Hosts
from .memory import Memories
from .question_vectors import QuestionEmbedders
from .renewal import Backends

__all__ = [
    "build_backends",
    "build_embedder",
    "build_memory",
    "build_pipeline",
    "build_router",
    "build_scorers",
    "pattern_factory",
]

_log = logging.getLogger(__name__)


def build_embedder(settings: Settings) -> Embedder:
    """The embedder that `sona.routing.embedder` names."""
    routing = settings.sona.routing
    embedder: Embedder = plugins.load("embedders", routing.embedder)(dict(routing.embedder_options), settings)
    return embedder


def build_memory(settings: Settings, store: Store, hosts: Hosts, backends: Backends) -> Memories | None:
    """What `sona.memory` asks for; None where nothing is learned from people. The contextual encoder is taken where
    the extra `memory` is installed and its model is in the cache or may be fetched.
    """
    sona = settings.sona
    if not sona.memory.enabled or sona.learning not in ("feedback", "auto") or not tuple(hosts):
        return None
    memory = EpisodeMemory(
        store.episode_store if isinstance(store, KeepsEpisodes) else None,
        sona.memory,
        storage=sona.storage,
        storage_options=sona.storage_options,
        compiled=engine_config(settings, 1).enable_simd,
    )
    static: Embedder = plugins.load("embedders", "static")({}, settings)
    embedders = QuestionEmbedders(static, _contextual(settings))
    return Memories(memory, hosts, store, embedders, backends, sona)


def _contextual(settings: Settings) -> Embedder | None:
    if not settings.sona.memory.contextual:
        return None
    try:
        embedder: Embedder = plugins.load("embedders", "onnx")({"download": False}, settings)
    except SonaError as error:
        _log.warning(
            "corrections are recalled for nearly the same words only (%s); for paraphrases, too: "
            "pip install 'sona-stream[memory]' && sona-stream models pull %s",
            error,
            CONTEXTUAL_MODEL,
        )
        return None
    return embedder


def pattern_factory(settings: Settings, embedder: Embedder) -> Callable[[], SonaEngine]:
    """Makes engines over query embeddings: routing's memory, one a tenant. Vectors are short here: numpy comes near
    compiled code and does without the second and the 100 MB that compiling costs; `sona.engine.enable_simd` says
    otherwise. Raises ConfigError at once.
    """
    config = engine_config(settings, embedder.dim, compiled=False)
    return lambda: SonaEngine.with_config(config)


def build_router(
    settings: Settings, embedder: Embedder, patterns: Patterns, discover: Discover | None = None
) -> PolicyRouter:
    """The policy that `sona.routing.policy` names. ``discover``: what a wildcard's upstream lists."""
    classifier = load_classifier()
    type_embedder = None
    if embedder.name != classifier.embedder:  # the types were learned on the bundled table
        type_embedder = plugins.load("embedders", "static")({}, settings)
    return create_router(settings, embedder, patterns, classifier, type_embedder=type_embedder, discover=discover)


def build_scorers(settings: Settings) -> Combined:
    """All scorers, or those that `sona.scoring.weights` names; and always what judges a constrained answer's form,
    without weight: the learner adapts such requests only on its word.
    """
    scoring = settings.sona.scoring
    names = list(scoring.weights) or plugins.available("scorers")
    return create_combined([*(plugins.load("scorers", name)(scoring) for name in names), FormScorer()])


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
    episodes: EpisodeRecall | None = None,
    scorers: Combined,
    meter: Meter,
    standing: Callable[[Backend], str],
) -> Handler:
    """Overhead -> route -> record -> fallback -> replica -> recall -> adapt -> score -> measure -> backend."""

    def stacked(backend: Backend) -> Handler:
        adapted = adapt(resolver)(score(scorers.begin)(measure(meter, backend.name)(backend)))
        recalled = adapted if episodes is None else recall(episodes)(adapted)
        return replica(lambda: standing(backend))(recalled)

    groups = {name: [stacked(backend) for backend in group] for name, group in backends.items()}
    routed = route(router, embedder)(record(sink, settings.sona.storage)(fallback(groups)))
    return overhead(meter, frozenset(backends))(routed)
