"""The shape of the settings, one struct a room. Loading and checking a file is `config.load`.

Unknown fields inside `sona:` are errors; the sections of LiteLLM that we do not use are warnings.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "CONTEXTUAL_MODEL",
    "DEFAULT_LOCAL_MODEL",
    "WILDCARD",
    "CanarySettings",
    "Deployment",
    "Health",
    "KeySettings",
    "Learning",
    "LearningSettings",
    "MemorySettings",
    "MetricSettings",
    "RoutingSettings",
    "ScoringSettings",
    "Settings",
    "SonaSettings",
    "Storage",
    "StorageSettings",
    "TimeoutSettings",
    "ValiditySettings",
]

DEFAULT_LOCAL_MODEL = "smollm2-135m-instruct"
CONTEXTUAL_MODEL = "all-minilm-l6-v2"
"""Tells paraphrases of a question from near misses."""
WILDCARD = "*"
"""A `model_name` that answers to every name not listed; as ``upstream_model``: the name as the client gave it."""

Learning = Literal["off", "observe", "feedback", "auto"]
Storage = Literal["none", "features", "text"]

Seconds = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]


class TimeoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of one upstream call, in seconds, kept apart on purpose."""

    connect: Seconds = 5.0
    first_byte: Seconds = 600.0
    idle: Seconds = 300.0


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `model_list`, resolved: where a model's answers come from."""

    model_name: str
    provider: str
    """Name of the entry point in `sona_stream.backends`."""
    upstream_model: str
    """The model's name (or path) as the backend knows it."""
    api_base: str | None = None
    api_key: str | None = None
    timeouts: TimeoutSettings = TimeoutSettings()
    retry_stale: bool = True
    """Repeat a request once when a *reused* connection died before the first response byte."""
    ssl_verify: bool | str = True
    """True, False, or the path of a CA bundle."""
    http2: bool = False
    proxy: str | None = None
    client_cert: str | tuple[str, str] | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    """Further `litellm_params` that the backend understands."""
    info: dict[str, Any] = msgspec.field(default_factory=dict)
    """`model_info`, verbatim: costs, `pattern_types` (the types this model is specialised in)."""
    id: str = ""
    """Unique among all deployments, several of which may share a ``model_name``; default: that name."""

    def __post_init__(self) -> None:
        if not self.id:
            msgspec.structs.force_setattr(self, "id", self.model_name)


class KeySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One API key. ``key`` is ``sha256:<hex>`` (see `sona-stream keys hash`), never the key itself."""

    key: str
    tenant: str = "default"
    roles: tuple[Literal["use", "teach", "admin"], ...] = ("use", "teach")
    trusted_gateway: bool = False
    name: str | None = None


class MetricSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A named metric that feedback may carry, mapped linearly to quality in [0, 1]."""

    min: float = 0.0
    max: float = 1.0
    direction: Literal["higher_is_better", "lower_is_better"] = "higher_is_better"


class StorageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long what is kept is kept, in days."""

    features_ttl_days: Seconds = 30.0
    text_ttl_days: Seconds = 30.0


class CanarySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How new versions are watched, and whom they answer until they are accepted.

    The number of answers that show a harm does not depend on the share, so a small share delays learning and saves
    no bad answer; what it adds is a comparison at the same time. So all requests get a new version at once, within
    the gates, and an automatic rollback watches over it.
    """

    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of the requests, that a version on trial answers; an end user stays on one side."""
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.01
    """Chance of ever going back from versions that are no worse, between two acceptances."""
    margin: Fraction = 0.05
    """How far quality may lie below that of the last accepted version."""
    probation: Count = 128
    """Answers without a finding after which versions on trial are accepted."""
    least_answers: Annotated[int, Meta(ge=0)] = 256
    """Answers of a key below which a new version serves everybody at once, also with a smaller share."""


class ValiditySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When requests with tools or a JSON schema are adapted: once their answers were shown to stay valid."""

    answers: Count = 32
    """Unadapted answers that are measured first."""
    share: Fraction = 0.1
    """Of constrained requests, that are then adapted on trial; 0: never."""
    margin: Fraction = 0.05
    """How far the share of valid answers may lie below that of unadapted ones."""
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """Chance of passing adapters that break more than that."""


class LearningSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The learner of a `HiddenStateHost`. Rates come from the engine's section."""

    anchor: Annotated[float, Meta(ge=0)] = 0.04
    """Weight of KL(p || p_base) per token in every step."""
    elsewhere: Annotated[float, Meta(ge=0)] = 32.0
    """How many times that weight a change costs on a fixed text that has nothing to do with the answers; 0: such
    text is not looked at."""
    familiar: Annotated[int, Meta(ge=0)] = 32
    """Different questions of a tenant that were judged, from which on a request that reads like text from elsewhere
    and not like them gets the bare model; 0: adapters serve every request."""
    step_kl: Seconds = 1e-3
    """Most that one step may move the policy at the default `micro_lora_lr` of 0.001: predicted mean KL, nats per
    token. Grows with the square of the rate."""
    max_kl_to_base: Seconds = 0.5
    """Gate: mean KL to the base model per token over the replay sample."""
    max_delta_ratio: Seconds = 0.5
    """Gate: mean |h' - h| / |h|."""
    max_logprob_drop: Seconds = 0.5
    """Gate: fall of the mean log-likelihood per token of accepted answers, of all and of each pattern's."""
    max_token_kl: Seconds = 20.0
    """Gate: KL to the base model at any one token of the replay sample."""
    max_repetition: Seconds = 0.05
    """Gate: rise of the chance that a drawn token repeats another one, over the base model's (degenerate text)."""
    least_trust: Annotated[float, Meta(ge=0.01, le=1)] = 0.05
    """Share of an adapter that is served before the ratings prove to be about the answers; 1: always all of it."""
    ratio_clip: tuple[float, float] = (0.5, 2.0)
    """How far a replay may take a token's probability from where it was drawn, before that token says no more.
    Wide, for the evidence holds a fit back, too, and ratings often come long after the answers."""
    replay_every: Count = 16
    """Feedbacks between two replays."""
    replay_steps: Annotated[int, Meta(ge=0)] = 16
    replay_tokens: Count = 512
    """Tokens in one minibatch of the replay."""
    replay_top_k: Annotated[int, Meta(ge=0)] = 128
    """Vocabulary rows kept per position during replay; 0 = all."""
    replay_capacity: Count = 256
    """Captures kept for replay, per model and tenant."""
    replay_mb: Count = 256
    """Memory of all replay captures and of what was measured on them; beyond it whole tenants are read back from
    the store when they learn."""
    adapter_mb: Count = 256
    """Memory of all adapters with the optimiser's moments; beyond it those used least recently are read back from
    the store when they are used."""
    consolidate_every: Count = 64
    """Accepted feedbacks since an adapter's last consolidation before `background_interval_ms` starts another."""
    base_steps: Annotated[int, Meta(ge=0)] = 16
    """Steps of the base pair after a consolidation, over the accepted answers in replay."""
    ewc_form: Literal["function", "factored"] = "function"
    """How `ewc_lambda` holds consolidated domains: on their kept answers, or (cheap) by second moments alone."""
    gate_tokens: Count = 512
    """Tokens of recent answers on which a new version is checked."""
    min_feedback: Count = 64
    """Accepted feedbacks before a finer level of the key chain (pattern type, pattern) learns by itself. It serves
    where its own lessons foretell its ratings better than those of the coarser level."""
    baseline_shrinkage: Annotated[float, Meta(ge=0)] = 8.0
    inbox: Count = 1024
    keep_versions: Count = 16
    """The newest versions of an adapter on disk. Half as many older ones stay beside them, each about twice as far
    back as the next, so that an old lesson can be taken back."""
    capture_mb: Count = 256
    """Memory of the host's ring of captures."""
    canary: CanarySettings = CanarySettings()
    validity: ValiditySettings = ValiditySettings()

    @property
    def older_versions(self) -> int:
        """See `keep_versions`."""
        return self.keep_versions // 2


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The memory of episodes: answers that were corrected or accepted, used again for the same question."""

    enabled: bool = True
    max_tokens: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Tokens of one answer that are kept; of a longer one the first."""
    tenant_episodes: Count = 10_000
    """Episodes of one tenant; beyond, the least useful go."""
    tenant_mb: Count = 512
    """Token states of one tenant."""
    episodes: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Episodes of all tenants. Each takes about a third of a KB of memory."""
    mb: Count = 8192
    """Token states of all tenants on disk."""
    volatile_mb: Count = 256
    """The same at `sona.storage: none`, where they are in memory and end with the process."""
    half_life_days: Seconds = 30.0
    """A use is worth half after so many days."""
    accepted: Literal["off", "person"] = "person"
    """Whether an answer that a person rated well is remembered, too, for that person alone.

    A thumbs-up says "good, like this", and whoever gave it does not expect the next answer to the same question to
    be worse; nor a recital. So it counts 0.4 of a correction: it decides where the model wavers and no more. It is
    never seen by others (an admin can promote it), gives way to any correction of the question, goes before any
    correction when room is needed, and leaves by /undo, or when the same answer is rated badly. Metrics and
    automatic scores are not a person's word and accept nothing. "off": ratings train adapters only.
    """
    accepted_quality: Fraction = 0.9
    """From this quality on (a rating of 0.8 on the scale from -1 to 1)."""
    contextual: bool = True
    """Tell paraphrases by the contextual encoder where the extra `[memory]` is installed; else near-exact matches
    only."""


class RoutingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How `sona/auto` chooses."""

    policy: str = "pattern_type"
    embedder: str = "static"
    embedder_options: dict[str, Any] = msgspec.field(default_factory=dict)
    min_quality: Fraction = 0.8
    """The guide's rule: a pattern is trusted when its average quality is above this."""
    min_similarity: Fraction = 0.5
    types: dict[str, str] = msgspec.field(default_factory=dict)
    """Pattern type -> model_name; the guide's `switch`."""
    general_model: str | None = None
    default_model: str | None = None
    fallbacks: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class ScoringSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which scorers judge answers, and their shares; empty: all the built-in ones."""

    weights: dict[str, float] = msgspec.field(default_factory=dict)


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probing of backends."""

    interval: Seconds = 10.0


class SonaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `sona:` block."""

    keys: tuple[KeySettings, ...] = ()
    user_header: str = "x-sona-user"
    """Header in which a trusted gateway names the end user (else the body's `user`)."""
    learning: Learning = "feedback"
    storage: Storage = "features"
    storage_options: StorageSettings = StorageSettings()
    state_dir: str | None = None
    """Folder of the learned state; default: the platform's state folder for `sona-stream`."""
    store: str = "sqlite"
    metrics: dict[str, MetricSettings] = msgspec.field(default_factory=dict)
    learner: LearningSettings = LearningSettings()
    memory: MemorySettings = MemorySettings()
    engine: dict[str, Any] = msgspec.field(default_factory=dict)
    """`SonaConfig` fields (the guide's parameters, snake_case or camelCase) except `hidden_dim`."""
    routing: RoutingSettings = RoutingSettings()
    scoring: ScoringSettings = ScoringSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    health: Health = Health()
    max_body_mb: Count = 32
    keep_alive_s: Seconds | None = None
    """Send the comment ``: ping`` into a stream that has begun and is silent for this long; default: never."""
    trajectory_ttl_s: Seconds = 600.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run needs to know."""

    models: tuple[Deployment, ...]
    sona: SonaSettings = SonaSettings()
    source: str | None = None
    """Path of the file, for messages."""
