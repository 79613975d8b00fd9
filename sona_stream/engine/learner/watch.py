"""What is known of one adapter key's newest versions against the last one that was trusted.

Answers of every version since the trusted one (the reference) are one stream: versions come every few seconds, each
a small step from the last, and none alone would ever have answers enough. A newer version takes the place of the
pending one and inherits its evidence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config.settings import CanarySettings
from ...events import Trajectory
from .reading import MARGINS, MEASURES, Window, read
from .sequential import Stream, below, below_value, not_below

__all__ = ["Finding", "Watch"]

_LEAST_COHERENT = 0.4
"""Without any answer of a reference, a mean share of distinct pairs within an answer below this is degenerate:
prose has .9, code and tables .5."""
_REFERENCE = 8
_SURE = 16
"""Ratings of versions on trial that overrule what automatic measures say of their quality and length."""
_OVERRULED = ("score", "length")
_LESSONS = 1024
_RATED = 2048
"""Answers of which four bytes are kept each; one in two million is taken for another."""
_SHARES = {"rating": 0.4, "coherence": 0.2, "distinct": 0.2, "score": 0.1, "length": 0.1}
"""Of `alpha`."""
_EPOCH = 32
"""Answers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """A measure that fell: `gate` for counting, `reason` for people."""

    gate: str
    reason: str


_NOTHING = Stream()
"""What a measure without a value says; a stream takes kilobytes, and most of a key's never get one."""


class _Arm:
    """All answers of one side."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.window = Window()
        self.answers = 0

    def read(self, trajectory: Trajectory) -> list[tuple[str, float]]:
        return list(read(trajectory, self.window))

    def take(self, values: Iterable[tuple[str, float]], answers: int = 1) -> None:
        self.answers += answers
        for measure, value in values:
            self.streams.setdefault(measure, Stream()).push(value)

    def of(self, measure: str) -> Stream:
        """To be read only."""
        return self.streams.get(measure, _NOTHING)


def _mark(answer: str) -> np.uint32:
    return np.uint32(
        int.from_bytes(hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=4).digest())
    )


class Watch:
    """One adapter key. Not thread-safe; a few hundred microseconds an answer."""

    def __init__(self, settings: CanarySettings, reference: int = 0) -> None:
        self._settings = settings
        self.reference = reference
        """Version that is gone back to; 0: what the key's requests get without it."""
        self.undone = 0
        """The newest version that was ever gone back from. What is said late of it and of those before it says
        nothing of their successors."""
        self.standing = 0
        """The undone version that is served again and is on trial still; 0: none."""
        self.lifetime = 0
        """Answers of the key that were ever looked at"""
        self._known, self._trial = _Arm(), _Arm()
        self._recent, self._epoch = _Arm(), 1
        """The last answers on trial, counted anew every `_EPOCH`: good ones before a fall would hide it."""
        self.lessons: list[str] = []
        """Feedback that taught the versions on trial."""
        self._rated = np.zeros(0, np.uint32)
        """Marks of the answers whose rating was counted, the last `_RATED`: more ratings of them are no more
        answers."""
        self.changes = 0
        """Values since this was last kept."""

    @property
    def seen(self) -> int:
        """Answers on both sides, since the last acceptance or going back."""
        return self._known.answers + self._trial.answers

    @property
    def answers(self) -> int:
        """Of the versions on trial."""
        return self._trial.answers

    @property
    def accepted(self) -> bool:
        """Whether the versions on trial have shown that they are no worse, or no harm in `probation` answers."""
        if self._trial.answers >= self._settings.probation:
            return True
        own, other = self._trial.of("rating"), self._known.of("rating")
        return not_below(own, other, self._settings.margin) >= -math.log(self._settings.alpha)

    def answered(self, version: int, trajectory: Trajectory) -> None:
        """An answer of this version (0: without the key)."""
        arm = self._arm(version)
        if arm is not None:
            self.lifetime += 1
            self._take(arm, arm.read(trajectory))
            if arm is self._trial and self._recent.answers >= _EPOCH:
                self._recent, self._epoch = _Arm(), self._epoch + 1

    def rated(self, version: int, quality: float, answer: str = "") -> None:
        """What somebody said of such an answer, in [0, 1]. The same answer counts once, also when a crash came in
        between: a test takes what it sees for independent. Without an id it always does.
        """
        if answer:
            mark = _mark(answer)
            if mark in self._rated:
                return
            self._rated = np.append(self._rated, mark)[-_RATED:]
            self.changes += 1
        arm = self._arm(version)
        if arm is not None:
            self._take(arm, [("rating", quality)], answers=0)

    def taught(self, feedback_id: str) -> None:
        """What a version on trial was, or will be, made of: it is durable, and does not come again."""
        self.changes += 1
        if feedback_id not in self.lessons:
            self.lessons.append(feedback_id)
            del self.lessons[:-_LESSONS]

    def advance(self, served: int) -> None:
        """The version that is served, and was accepted, is what newer ones are measured by from now on. Its answers
        are the reference's: a stream's evidence may be read at any time, also when it led to acceptance.
        """
        self.reference, self._known, self._trial = served, self._trial, _Arm()
        self._recent, self._epoch, self.standing = _Arm(), 1, 0
        self.lessons.clear()
        self.changes += 1

    def back_to(self, version: int, newest: int, *, trusted: bool = False) -> Watch:
        """What is known once the key serves this version again and those up to `newest` are undone: nothing of any
        other but the reference. Unless it is `trusted`, a version that is newer than that goes on with its trial,
        and what taught the others, which they would learn again, still counts as lessons on trial.
        """
        on_trial = version > self.reference and not trusted
        watch = Watch(self._settings, self.reference if on_trial else version)
        watch.undone = max(self.undone, newest)
        watch.lifetime = self.lifetime
        watch._rated = self._rated
        if not trusted:
            watch.lessons = list(self.lessons)
        if watch.reference == self.reference:
            watch._known = self._known
        if on_trial:
            watch.standing = version
            watch._trial, watch._recent, watch._epoch = self._trial, self._recent, self._epoch
        return watch

    def finding(self) -> Finding | None:
        """The first measure that fell, if any. All together are wrong about versions that are no worse with a
        probability of at most `alpha`, however often this is asked.
        """
        for measure in MEASURES:
            needed = -math.log(0.5 * _SHARES[measure] * self._settings.alpha)
            # The epochs' shares of alpha, 1 / (k (k + 1)), add up to at most 1.
            later = needed + math.log(self._epoch * (self._epoch + 1))
            fell = self._evidence(self._trial, measure) >= needed or self._evidence(self._recent, measure) >= later
            if fell and not self._overruled(measure):
                return self._told(measure)
        return None

    def view(self) -> dict[str, object]:
        """For the admin pages."""
        arms = {"reference": self._known, "trial": self._trial}
        means = {
            name: {one: [round(arm.of(one).mean, 4), arm.of(one).n] for one in MEASURES if one in arm.streams}
            for name, arm in arms.items()
        }
        evidence = {
            one: round(self._evidence(self._trial, one), 2) for one in MEASURES if one in self._trial.streams
        }
        return {"reference": self.reference, "answers": self.answers, "means": means, "log_evidence": evidence}

    def _arm(self, version: int) -> _Arm | None:
        if version == self.reference:
            return self._known
        newer = version > max(self.reference, self.undone)
        return self._trial if newer or 0 < version == self.standing else None

    def _take(self, arm: _Arm, values: list[tuple[str, float]], answers: int = 1) -> None:
        arm.take(values, answers)
        if arm is self._trial:
            self._recent.take(values, answers)
        self.changes += 1

    def _evidence(self, arm: _Arm, measure: str) -> float:
        """Log of the evidence that these answers' mean is below the reference's by more than the margin."""
        own, other = arm.of(measure), self._known.of(measure)
        if not own.n:
            return 0.0
        if measure == "coherence" and other.n < _REFERENCE:
            return below_value(own, _LEAST_COHERENT)
        return below(own, other, MARGINS.get(measure, self._settings.margin))

    def _overruled(self, measure: str) -> bool:
        """Where people say what they think of these versions, that is the quality, and the length is theirs."""
        return measure in _OVERRULED and self._trial.of("rating").n >= _SURE

    def _told(self, measure: str) -> Finding:
        own, other = self._trial.of(measure), self._known.of(measure)
        against = f"{other.mean:.2f} of version {self.reference}" if other.n else f"at least {_LEAST_COHERENT}"
        gate = "degenerate_answers" if measure in ("coherence", "distinct") else f"{measure}_fell"
        return Finding(gate, f"{measure} of {own.n} answers fell to {own.mean:.2f} from {against}")

    # ---- across restarts

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All but the words of the last answers, as it is now."""
        counts = (self._known.answers, self._trial.answers, self._epoch)
        arrays: dict[str, NDArray[Any]] = {
            "state": np.asarray([self.reference, *counts, self.undone, self.lifetime, self.standing]),
            "lessons": np.asarray(self.lessons, dtype=np.str_),
            "rated": self._rated,
        }
        for side, arm in (("known", self._known), ("trial", self._trial)):
            for measure, stream in arm.streams.items():
                arrays |= {f"{side}.{measure}.{name}": part for name, part in stream.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, held: Mapping[str, NDArray[Any]], settings: CanarySettings) -> Watch:
        """Inverse of `to_arrays`. Raises ValueError for something else."""
        watch = cls(settings)
        try:
            numbers = [int(one) for one in held["state"]]
            watch.reference, watch._known.answers, watch._trial.answers, epoch = numbers[:4]
            watch.undone, watch.lifetime = numbers[4:6] or (0, watch.seen)
            watch.standing = numbers[6] if len(numbers) > 6 else 0
            watch._epoch = epoch + 1
            watch.lessons = [str(one) for one in held["lessons"]]
            rated = held.get("rated", watch._rated)
            if rated.dtype != np.uint32:  # ids, as they were kept once
                rated = np.asarray([_mark(str(one)) for one in rated], np.uint32)
            watch._rated = rated
            for side, arm in (("known", watch._known), ("trial", watch._trial)):
                for measure in MEASURES:
                    names = {part: f"{side}.{measure}.{part}" for part in ("sums", "up", "down")}
                    if names["sums"] in held:
                        arm.streams[measure] = Stream.from_arrays({n: held[at] for n, at in names.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no watch of an adapter: {error}") from error
        return watch
