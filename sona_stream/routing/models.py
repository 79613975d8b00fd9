"""Which models there are, which of them is specialised in what, and who steps in."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence

from ..config.entries import AUTO
from ..config.settings import WILDCARD, Settings
from ..errors import ConfigError, NotFound, NotReady
from ..events import PATTERN_TYPES, PatternType

__all__ = ["Discover", "ModelCatalog"]

Discover = Callable[[], Awaitable[Sequence[str]]]

_log = logging.getLogger(__name__)

_ROUTING = "sona.routing"
_DEFAULT = f"{_ROUTING}.default_model"
_NO_ANSWERER = re.compile(
    r"(?<![a-z])(embed|embeddings?|rerank|reranker|bge|gte|e5|colbert|clip|whisper|transcribe|asr|tts|dall-?e|image"
    r"|diffusion|flux|moderation|guard|realtime|babbage|davinci)(?![a-z])",
    re.IGNORECASE,
)


class ModelCatalog:
    """The names of `model_list` as routing sees them. Raises ConfigError naming the entry that does not fit."""

    def __init__(self, settings: Settings, discover: Discover | None = None) -> None:
        """``discover`` gives the names that a wildcard's upstream lists, for want of any name of our own; it raises
        NotReady while the upstream cannot say, NotFound when it does not.
        """
        routing = settings.sona.routing
        self._discover = discover
        self._unknown: NotReady | NotFound | None = None
        self._routing = routing
        self.names = tuple(dict.fromkeys(model.model_name for model in settings.models))
        self._fallbacks = {name: tuple(targets) for name, targets in routing.fallbacks.items()}
        self._specialists = self._types(settings)
        concrete = [name for name in self.names if name != WILDCARD]
        self.default = routing.default_model or (concrete[0] if concrete else None)
        self.general = routing.general_model or self.default
        for where, name in (("default_model", self.default), ("general_model", self.general)):
            self._check(f"{_ROUTING}.{where}", name)
        for name, targets in self._fallbacks.items():
            for target in (name, *targets):
                self._check(f"{_ROUTING}.fallbacks.{name}", target)

    def _types(self, settings: Settings) -> dict[PatternType, str]:
        """`sona.routing.types` first, then each model's `model_info.pattern_types`, the earlier entry winning."""
        chosen: dict[PatternType, str] = {}
        for kind, name in settings.sona.routing.types.items():
            self._check(f"{_ROUTING}.types.{kind}", name)
            chosen[_pattern_type(f"{_ROUTING}.types", kind)] = name
        for model in settings.models:
            where = f"model_info.pattern_types of {model.model_name!r}"
            kinds = model.info.get("pattern_types", ())
            if not isinstance(kinds, list | tuple):
                raise ConfigError(f"{where} must be a list of pattern types, got {kinds!r}")
            for kind in kinds:
                chosen.setdefault(_pattern_type(where, kind), model.model_name)
        return chosen

    def _check(self, where: str, name: str | None) -> None:
        if name is not None and name not in self.names and WILDCARD not in self.names:
            known = ", ".join(self.names) or "none"
            raise ConfigError(f"{where} names {name!r}, which is not in model_list (there: {known})")

    def knows(self, name: str) -> bool:
        """True when a request may name this model."""
        return name in self.names or WILDCARD in self.names

    async def refresh(self) -> None:
        """With nothing but a wildcard, the default becomes the first that its upstream lists, and stays while it is
        listed at all: another order there must not be another model here. Cheap when there is more.
        """
        if self._discover is None or self.names != (WILDCARD,) or self._routing.default_model is not None:
            return
        try:
            listed = await self._discover()
            self._unknown = None
        except (NotReady, NotFound) as error:
            listed, self._unknown = (), error
        if self.default not in listed:
            self.default = _first_answerer(listed)
            if self.default is not None:
                _log.info(
                    "%s goes to %s, of what the upstream lists; %s names another", AUTO, self.default, _DEFAULT
                )
        self.general = self._routing.general_model or self.default

    def default_model(self) -> str:
        """With only a wildcard in `model_list`, no default set, and none found by `refresh`: raises NotReady when
        the upstream could not say, NotFound otherwise.
        """
        if self.default is None and isinstance(self._unknown, NotReady):
            raise NotReady(f"nothing to route to yet: {self._unknown}")
        if self.default is None:
            why = self._unknown or "its upstream lists none"
            raise NotFound(
                f"nothing to route to: model_list names no model, {why}, and {_DEFAULT} is not set; "
                "ask for a model by its name"
            )
        return self.default

    def general_model(self) -> str:
        """The guide's `general-model`; the default one when none is set."""
        return self.general or self.default_model()

    def specialist(self, kind: PatternType) -> str | None:
        """The model for this type, if any."""
        return self._specialists.get(kind)

    def fallbacks(self, name: str) -> tuple[str, ...]:
        """Who is asked next, in order, each once, never `name` itself."""
        targets = self._fallbacks.get(name, self._fallbacks.get(WILDCARD, ()))
        return tuple(dict.fromkeys(target for target in targets if target != name))


def _first_answerer(listed: Sequence[str]) -> str | None:
    """The first name that is not plainly of one that holds no conversation (embeds, reranks, moderates, speaks,
    draws); the first, when all are.
    """
    return next((name for name in listed if not _NO_ANSWERER.search(name)), listed[0] if listed else None)


def _pattern_type(where: str, value: object) -> PatternType:
    for kind in PATTERN_TYPES:
        if value == kind:
            return kind
    raise ConfigError(f"{where} has the unknown pattern type {value!r} (known: {', '.join(PATTERN_TYPES)})")
