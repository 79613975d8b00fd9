"""What the memory lets act with the real encoder, on a part of the questions that its gate was fitted on.

The floors are far below what `benchmarks/gate_fit.py` finds: they hold when the fit moves, and fall when pooling,
the tokenizer, the words' reading or the order of candidates break.
"""

from pathlib import Path

import learning  # noqa: F401 - puts `examples` on the path
import pytest
from learning_parts.asking import asked, stored
from learning_parts.gating import Encoders, acting, shares

FLOORS = {"own": 100, "paraphrase": 70, "situation": 60, "near_miss": 90, "same_form": 95, "unrelated": 98}
EACH = 40


@pytest.mark.model
async def test_paraphrases_are_recognised_and_near_misses_are_not(encoder: Path) -> None:
    questions = [
        one for kind in FLOORS for one in [other for other in asked("fit") if other.kind == kind][::2][:EACH]
    ]
    answered, _ = await acting(Encoders(), stored("fit"), questions)
    found = {kind: 100 * right / count for kind, (right, count) in shares(answered).items()}
    assert found.keys() == FLOORS.keys()
    assert not {kind: share for kind, share in found.items() if share < FLOORS[kind]}
