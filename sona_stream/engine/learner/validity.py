"""Whether adapted answers keep the form that their requests demand: tool calls that parse, JSON after its schema.

A constrained request gets the bare model until that was shown for its adapter key: first its unadapted answers are
measured, then a small share is adapted, until evidence says that adapted answers are valid as often (less a
margin), or that they are not. What passed is still watched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...config.settings import ValiditySettings
from .sequential import Stream, below, not_below

__all__ = ["Validity"]

State = Literal["measuring", "trial", "passed", "failed"]
_STATES: tuple[State, ...] = ("measuring", "trial", "passed", "failed")


class Validity:
    """One adapter key's."""

    def __init__(self, settings: ValiditySettings) -> None:
        self._settings = settings
        self._bare, self._adapted = Stream(), Stream()
        self.state: State = "measuring"
        self.changes = 0

    def observe(self, valid: float, *, adapted: bool) -> bool:
        """One constrained answer, 1 when its form was right. Whether the verdict changed."""
        (self._adapted if adapted else self._bare).push(valid)
        self.changes += 1
        before, self.state = self.state, self._judged()
        return self.state != before

    @property
    def seen(self) -> int:
        """Answers on both sides."""
        return self._bare.n + self._adapted.n

    @property
    def share(self) -> float:
        """Of constrained requests that are adapted now."""
        if self.state == "passed":
            return 1.0
        return self._settings.share if self.state == "trial" else 0.0

    def reason(self) -> str:
        """Why a constrained request gets the bare model."""
        bare, own = self._bare, self._adapted
        if self.state == "measuring":
            return f"constrained: {bare.n} of {self._settings.answers} unadapted answers measured"
        if self.state == "failed":
            return (
                f"constrained: adapted answers were valid in {own.mean:.0%} of {own.n}, unadapted ones in "
                f"{bare.mean:.0%} of {bare.n}"
            )
        if self._settings.share == 0:
            return "constrained: sona.learner.validity.share is 0"
        return f"constrained: on trial for {self._settings.share:.0%}, {own.n} adapted answers so far"

    def view(self) -> dict[str, object]:
        """For the admin pages."""
        means = {
            name: [round(one.mean, 4), one.n] for name, one in (("bare", self._bare), ("adapted", self._adapted))
        }
        return {"state": self.state, **means}

    def _judged(self) -> State:
        """A failure lasts: the adapter was shown to break answers. Only another adapter begins anew."""
        needed, margin = -math.log(self._settings.alpha), self._settings.margin
        if self.state == "failed" or below(self._adapted, self._bare, margin) >= needed:
            return "failed"
        if self._bare.n < self._settings.answers:
            return "measuring"
        if self.state == "passed" or not_below(self._adapted, self._bare, margin) >= needed:
            return "passed"
        return "trial"

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As it is now, for the store."""
        return {
            "state": np.asarray(_STATES.index(self.state)),
            **{
                f"{side}.{name}": part
                for side, stream in (("bare", self._bare), ("adapted", self._adapted))
                for name, part in stream.to_arrays().items()
            },
        }

    @classmethod
    def from_arrays(cls, held: Mapping[str, NDArray[Any]], settings: ValiditySettings) -> Validity:
        """Inverse of `to_arrays`. Raises ValueError for something else."""
        found = cls(settings)
        try:
            found._bare, found._adapted = (
                Stream.from_arrays({part: held[f"{side}.{part}"] for part in ("sums", "up", "down")})
                for side in ("bare", "adapted")
            )
            found.state = _STATES[int(held["state"])]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the validity of an adapter lacks {error}") from error
        return found
