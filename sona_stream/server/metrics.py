"""What `/metrics` counts, in Prometheus' form. Names: OpenTelemetry's gen_ai conventions, and our own `sona_*`.

Labels are bounded: a model that the configuration does not name counts as ``other``, and so does every pattern type
or reason past the first 64.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..events import Endpoint, Feedback, FeedbackOutcome, Finish, Head, RouteDecision

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram

__all__ = ["Bounded", "Metrics", "Timing"]

# The bucket bounds that OpenTelemetry advises for these measures, in seconds and tokens.
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_QUALITY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LIMIT = 64


class Bounded:
    """Lets the first ``limit`` values of a label through; later ones are ``other``."""

    def __init__(self, known: Iterable[str] = (), *, limit: int = _LIMIT) -> None:
        self._known = set(known)
        self._limit = max(limit, len(self._known))

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return "other"
            self._known.add(value)
        return value


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """The histograms of one endpoint, model and kind of end."""

    duration: Histogram
    first_token: Histogram
    per_token: Histogram
    input: Histogram
    output: Histogram
    quality: Histogram


class Timing:
    """One answer on the clock (`time.perf_counter`)."""

    __slots__ = ("began", "chunks", "first")

    def __init__(self, began: float) -> None:
        self.began = began
        self.first: float | None = None
        self.chunks = 0

    def chunk(self) -> None:
        """One more increment of the answer is here."""
        if self.first is None:
            self.first = time.perf_counter()
        self.chunks += 1


class Metrics:
    """Adds its collectors to ``registry``; raises ValueError when they are there already."""

    def __init__(self, registry: CollectorRegistry, models: Iterable[str]) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        names = frozenset(models)
        self._model = Bounded(names, limit=len(names))
        self._pattern, self._reason = Bounded(), Bounded()
        self._series: dict[tuple[Endpoint, str, str], _Series] = {}
        operation = ("gen_ai_operation_name", "gen_ai_request_model")
        self.in_flight = Gauge("sona_in_flight_requests", "Requests being answered now.", registry=registry)
        self.decisions = Counter(
            "sona_routing_decisions",
            "Answers by pattern type, model and reason of the route.",
            ("pattern", "model", "reason"),
            registry=registry,
        )
        self.cancelled = Counter(
            "sona_upstream_cancelled",
            "Answers given up because the client left, by phase.",
            ("phase",),
            registry=registry,
        )
        self.feedback = Counter(
            "sona_feedback", "Feedback by kind and what became of it.", ("kind", "status"), registry=registry
        )
        self.quality = Histogram(
            "sona_quality_score",
            "Automatic quality of complete answers.",
            ("model",),
            registry=registry,
            buckets=_QUALITY,
        )
        self.duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the request's arrival to its last byte.",
            (*operation, "error_type"),
            registry=registry,
            buckets=_DURATION,
        )
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request's arrival to the first increment of its answer.",
            operation,
            registry=registry,
            buckets=_FIRST,
        )
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time between an answer's tokens after the first (between its increments where no usage is told).",
            operation,
            registry=registry,
            buckets=_PER_TOKEN,
        )
        self.usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of one request, by type, where the backend tells them.",
            (*operation, "gen_ai_token_type"),
            registry=registry,
            buckets=_TOKENS,
        )

    def decided(self, route: RouteDecision) -> None:
        """An answer has begun."""
        self.decisions.labels(
            self._pattern(route.pattern_type), self._model(route.model), self._reason(route.reason)
        ).inc()

    def left(self, phase: str) -> None:
        """The client did not wait."""
        self.cancelled.labels(phase).inc()

    def answered(
        self, endpoint: Endpoint, timing: Timing, head: Head | None, finish: Finish | None, error: str
    ) -> None:
        """A request has ended; ``error`` is empty for a complete answer, else the error's code or ``cancelled``."""
        now = time.perf_counter()
        series = self._series_of(endpoint, self._model(head.model) if head is not None else "other", error)
        series.duration.observe(now - timing.began)
        if timing.first is not None:
            series.first_token.observe(timing.first - timing.began)
        if finish is None:
            return
        usage = finish.usage
        steps = (usage.completion_tokens if usage else timing.chunks) - 1
        if timing.first is not None and timing.chunks > 1 and steps > 0:
            series.per_token.observe((now - timing.first) / steps)
        if usage is not None:
            series.input.observe(usage.prompt_tokens)
            series.output.observe(usage.completion_tokens)
        if finish.score is not None and finish.score.value is not None:
            series.quality.observe(finish.score.value)

    def _series_of(self, endpoint: Endpoint, model: str, error: str) -> _Series:
        """The labelled children, looked up once: `labels` costs as much as `observe`."""
        key = (endpoint, model, error)
        if key not in self._series:
            operation = ("chat" if endpoint == "chat.completions" else "text_completion", model)
            self._series[key] = _Series(
                duration=self.duration.labels(*operation, error),
                first_token=self.first_token.labels(*operation),
                per_token=self.per_token.labels(*operation),
                input=self.usage.labels(*operation, "input"),
                output=self.usage.labels(*operation, "output"),
                quality=self.quality.labels(model),
            )
        return self._series[key]

    def judged(self, feedback: Feedback, outcome: FeedbackOutcome) -> None:
        """Feedback was answered."""
        self.feedback.labels(feedback.kind, outcome.status).inc()
