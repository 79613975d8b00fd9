"""What a seed gave, kept beside the report, so that a run of hours that is cut off goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from live_adaptation import FEEDBACKS, MAX_TOKENS, QUESTIONS, SAMPLES, TEMPERATURE, Answer, Outcome
from vllm_env import vllm_version

from .tenants import Greedy

__all__ = ["Seed", "kept_file", "load", "save", "state_of_code"]

_ROOT = Path(__file__).parents[2]
_DECIDES = ("sona_stream", "adapters", "benchmarks/vllm_learning_parts")
_ALSO = (
    QUESTIONS,
    _ROOT / "examples/live_adaptation.py",
    _ROOT / "examples/served.py",
    _ROOT / "benchmarks/vllm_learning.py",
)


@dataclasses.dataclass(frozen=True)
class Seed:
    """All answers of one seed."""

    outcome: Outcome
    looked: tuple[list[Greedy], list[Greedy]]
    """tenant B's before and after"""
    adapter: str
    """that served tenant A in the end"""
    feedbacks: int
    """given by tenant A"""
    seconds: float


def state_of_code() -> str:
    """A digest of everything that decides what is measured, with vLLM's version: a seed of other code is measured
    again.
    """
    digest = hashlib.sha256(repr((FEEDBACKS, SAMPLES, MAX_TOKENS, TEMPERATURE, vllm_version())).encode())
    files = [path for folder in _DECIDES for path in sorted((_ROOT / folder).rglob("*.py"))]
    for path in [*files, *_ALSO]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept_file(report: Path, number: int) -> Path:
    """Beside the report."""
    return report.with_name(f"{report.stem}.seed{number}.json")


def save(file: Path, seed: Seed, code: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".part")
    half.write_text(json.dumps({"code": code, **dataclasses.asdict(seed)}, indent=1) + "\n")
    half.replace(file)


def load(file: Path, code: str) -> Seed | None:
    """None when it was not measured yet, or by other code."""
    if not file.exists():
        return None
    told = json.loads(file.read_text())
    if told.pop("code") != code:
        return None
    outcome = Outcome(**{name: [Answer(**one) for one in part] for name, part in told.pop("outcome").items()})
    before, after = (
        [Greedy(**{**one, "logprobs": tuple(one["logprobs"])}) for one in p] for p in told.pop("looked")
    )
    return Seed(outcome=outcome, looked=(before, after), **told)
