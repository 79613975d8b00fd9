"""`benchmarks/gate_fit.py` and the memory's size: sets, arithmetic, and both against a small memory."""

import collections
import types

import learning  # noqa: F401 - puts `examples` on the path
import numpy as np
import pytest
from learning_parts import gate_fit, gate_small, gate_turns, gating, memory_size
from learning_parts.asking import Asked, Stored, asked, small_words, stored

from sona_stream.engine.memory import context
from sona_stream.engine.memory import small_words as small
from sona_stream.engine.memory.comparison import WEIGHTS
from sona_stream.episodes import QuestionVectors


def test_each_half_asks_what_it_should():
    for half in ("fit", "report"):
        found = asked(half)
        counts = collections.Counter(one.kind for one in found)
        assert counts["own"] == counts["same_form"] == counts["unrelated"] == 100
        assert (counts["paraphrase"], counts["near_miss"]) == (300, 50)
        assert {one.half for one in found} == {half}
        known = {one.id for one in stored(half)}
        assert all(one.meant in known for one in found if one.kind in ("own", "paraphrase", "situation"))
        assert not any(one.meant for one in found if one.kind in ("near_miss", "same_form", "unrelated"))
    training = asked("training")
    assert len(training) == 6 * len(stored("training"))
    assert not {one.text for one in training} & {one.text for half in ("fit", "report") for one in asked(half)}


def drawn(rng, count, family):
    """Paraphrases lie above near misses in the first evidence; the rest is noise."""
    same = rng.random(count) < 0.5
    evidence = rng.standard_normal((count, len(WEIGHTS)))
    evidence[:, 0] += 4 * same
    kinds = ["paraphrase" if one else ("near_miss", "same_form", "unrelated")[i % 3] for i, one in enumerate(same)]
    questions = tuple(Asked(kind, "", "x", f"{family} {i % 7}", "fit") for i, kind in enumerate(kinds))
    return gate_fit.Pairs(evidence, np.zeros(count, bool), same, np.ones(count, bool), questions)


def test_the_fit_finds_what_tells_them_apart(monkeypatch):
    monkeypatch.setattr(gate_fit, "REPEATS", 2)
    rng = np.random.default_rng(0)
    one, more = drawn(rng, 400, "a"), drawn(rng, 100, "b")
    found = gate_fit.fit(one)
    assert np.abs(found.weights).argmax() == 0
    slope = 1 / (1 + np.exp(-found.odds(one))) - one.same
    assert abs(slope.sum()) < 1e-6, "the intercept is free"
    odds = gate_fit.cross_validated(one, more)
    assert odds.shape == (2, 400)
    at = gate_fit.threshold(one, odds[0])
    acting = odds[0] > at
    assert acting[one.kinds("unrelated")].mean() == 0
    assert acting[one.kinds("near_miss")].mean() <= 0.04
    assert gate_fit.recall(one, odds[0], at) > 0.6
    vetoed = gate_fit.Pairs(one.evidence, np.ones(400, bool), one.same, one.nearest, one.asked)
    assert (found.odds(vetoed) == -np.inf).all()


class Bag:
    """Vectors of the words of a text."""

    def vectors(self, texts):
        return [QuestionVectors(static=self.of(text, 256), contextual=self.of(text, 384)) for text in texts]

    @staticmethod
    def of(text, size):
        words = text.lower().strip("?").split()
        rows = [np.random.default_rng(sum(map(ord, word)) * size).standard_normal(size) for word in words]
        return (sum(rows) / np.linalg.norm(sum(rows))).astype(np.float32)


async def test_what_acts_is_told_by_the_product_itself():
    corrections = [
        Stored("lift", "Who repairs the lift?", "fit"),
        Stored("tea", "How strong is our tea here?", "fit"),
    ]
    questions = [
        Asked("own", "Who repairs the lift?", "lift", "a", "fit"),
        Asked("paraphrase", "how strong is our tea here", "tea", "b", "fit"),
        Asked("unrelated", "Describe seven blue whales", "", "c", "fit"),
    ]
    found, lost = await gating.acting(Bag(), corrections, questions)
    assert lost == 0
    assert [one.acting for one in found] == [("lift",), ("tea",), ()]
    assert gating.shares(found) == {"own": (1, 1), "paraphrase": (1, 1), "unrelated": (1, 1)}
    made = gate_fit.pairs(Bag(), corrections, questions)
    assert made.evidence.shape == (3, len(WEIGHTS))
    assert made.same.tolist() == [True, True, False]


async def test_the_memory_s_size_is_measured_on_a_real_folder(tmp_path, monkeypatch):
    for name, value in {"EPISODES": 64, "CENTRES": 8, "BODIES": 4, "QUESTIONS": 16, "CHUNK": 30}.items():
        monkeypatch.setattr(memory_size, name, value)
    await memory_size.fill(tmp_path, 64)
    told = await memory_size.measure(tmp_path)
    assert len(told["search_ms"]) == len(told["gated_ms"]) == len(told["states_ms"]) == 16
    assert max(told["candidates"]) >= 4
    assert min(told["states_ms"]) > 0
    assert told["index_mb"] > 0
    rows = []
    run = types.SimpleNamespace(kept=lambda name, measure: told | {"disk_mb": 1.0})
    report = types.SimpleNamespace(add=rows.append, measured=lambda id, samples, unit, **more: rows.append(id))
    memory_size.add_rows(report, run)
    assert rows[0] == "memory.search_ms_100k"
    assert rows[1].id == "memory.ram_mb_100k"
    assert rows[1].value == pytest.approx(told["ram_mb"])


def test_conversations_teach_what_was_said_before_alone():
    found = gate_turns.conversations("training")
    assert not {one.turns for one in found} & {
        one.turns for half in ("fit", "report") for one in gate_turns.conversations(half)
    }
    same = [(a, b) for one in found for a, b, is_same in one.pairs() if is_same]
    assert all(a[:-1] != b[:-1] for a, b in same)
    scenes = gate_turns.scenes(Bag(), found)
    assert scenes.evidence.shape == (len(scenes.same), len(context.WEIGHTS))
    assert 0.2 < scenes.same.mean() < 0.8
    fitted = gate_turns.fit(scenes)
    assert np.isfinite(fitted.weights).all()
    assert all(0 <= share <= 100 for share in gate_turns.cross_validated(scenes))


async def test_what_acts_in_conversations_is_told_by_the_product_itself():
    one = gate_turns.Conversation(
        "lift",
        ("We speak about the lift.", "Who repairs it?"),
        (("We speak about the lift.", "Who repairs it?"),),
        (("Tomatoes grow on page 7.", "Who repairs it?"),),
    )
    assert await gate_turns.acting(Bag(), [one]) == gate_turns.Acted(100.0, 100.0, 100.0)


def test_small_words_are_fitted_on_what_they_decide():
    found = gate_small.changes(list(gate_fit.met(Bag(), *small_words("fit"))))
    assert found.values.shape == (len(found.asked), len(small.WEIGHTS))
    assert 0.5 < found.judged.mean() < 1
    assert not found.values[~found.judged].any()
    fitted = gate_small.fit(found)
    weights = dict(zip(small.WEIGHTS, fitted.weights, strict=True))
    assert max(weights["tense"], weights["asking"], weights["preposition other"]) < 0


def test_the_threshold_for_small_words_lets_few_harmful_ones_through(monkeypatch):
    monkeypatch.setattr(gate_small, "REPEATS", 2)
    rng = np.random.default_rng(1)
    same = rng.random(400) < 0.5
    kinds = ["harmless" if one else "harmful" for one in same]
    questions = tuple(
        Asked(kind, "", "x" if kind == "harmless" else "", f"{i % 40}", "fit") for i, kind in enumerate(kinds)
    )
    values, judged = rng.standard_normal((400, 2)) + 2 * same[:, None], np.arange(400) % 8 > 0
    found = gate_small.Changes(values, judged, same, same, np.ones(400, bool), questions)
    odds = gate_small.cross_validated(found)
    assert odds.shape == (2, 400)
    at = gate_small.threshold(found, odds[0])
    acting = (odds[0] > at) & judged & ~same
    assert acting.sum() == int(gate_small.MOST_ACTING * (judged & ~same).sum())
    assert gate_small.share(found, odds[0], at, "harmless") > 0.6
    assert gate_small.share(found, odds[0], np.inf, "harmless") == pytest.approx(
        (~judged & same).sum() / same.sum()
    )
