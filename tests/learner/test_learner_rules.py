"""The learner's mathematics, against the formulas of a tiny softmax model."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import D, T, ToyHost, World

from sona_stream.engine.learner.baseline import Baseline, advantages
from sona_stream.engine.learner.gates import Limits, judge
from sona_stream.engine.learner.initial import initial_weights
from sona_stream.engine.learner.keys import AdapterKey, chain
from sona_stream.engine.learner.lessons import Lesson, LessonBook
from sona_stream.engine.learner.optimiser import Direction, Pace, contracted, moved, shifted, step_of
from sona_stream.engine.learner.replay import Plan, Weighed, fit, minibatches, weigh
from sona_stream.engine.learner.step import instant_step, within_budget
from sona_stream.events import RouteDecision
from sona_stream.lora import Curvature, Evaluation, LoraWeights, LowRank, Spectrum, TokenSignal


def weights_of(seed, rank=2, size=0.1):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rank, D)).astype(np.float32) * 0.3
    b = rng.standard_normal((D, rank)).astype(np.float32) * size
    return LoraWeights(LowRank(a, b))


def answers(n, seed=0):
    world = World(ToyHost(seed))
    for _ in range(n):
        world.ask()
    return world.host, list(world.host.captures.values())


def pace_of(curvature, **changes):
    return Pace(**{"curvature": curvature, "stride": 1.0, "rate": 0.01, "freedom": 0.5, **changes})


def moments_of(curvature):
    return {"rms": np.asarray([curvature.rms], dtype=np.float32)}


@pytest.mark.parametrize("clip", [None, (0.7, 1.3)])
@pytest.mark.parametrize("anchor", [0.0, 0.3])
async def test_toy_gradient_is_the_derivative_of_its_loss(clip, anchor):
    """The reference itself, by finite differences."""
    host, captures = answers(3)
    weights = weights_of(1)
    rng = np.random.default_rng(2)
    signal = TokenSignal(
        weights=weights,
        advantages=[rng.standard_normal(T).astype(np.float32) for _ in captures],
        anchor=anchor,
        ratio_clip=clip,
    )
    exact = await host.gradient(captures, signal)
    for name, gradient in (("lora_A", exact.micro_A), ("lora_B", exact.micro_B)):
        for index in [(0, 1), (1, 0), (gradient.shape[0] - 1, gradient.shape[1] - 1)]:
            values = []
            for sign in (1, -1):
                pair = {"lora_A": weights.micro.lora_A.copy(), "lora_B": weights.micro.lora_B.copy()}
                pair[name] = pair[name].astype(np.float64)
                pair[name][index] += sign * 1e-5
                values.append(host.loss(captures, signal, LoraWeights(LowRank(**pair))))
            assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    advantage=st.floats(-3, 3).filter(lambda a: abs(a) >= 1e-3),
    stride=st.floats(1e-3, 100),
    freedom=st.floats(0, 1),
    step_kl=st.floats(1e-5, 1e-1),
)
def test_step_respects_the_kl_budget(seed, advantage, stride, freedom, step_kl):
    import asyncio

    async def run():
        host, captures = answers(1, seed)
        start = weights_of(seed)
        curvature = await host.curvature(captures)
        step = await instant_step(
            host,
            captures[0],
            start,
            moments_of(curvature),
            advantage=advantage,
            demonstration=False,
            anchor=0.05,
            pace=pace_of(curvature, stride=stride, freedom=freedom),
            step_kl=step_kl,
        )
        assert step is not None
        budget = step_kl * min(1.0, advantage**2)
        assert await host.predicted_kl(captures, start, step.weights) <= budget * (1 + 1e-6)
        if freedom == 0.0:
            assert np.array_equal(step.weights.micro.lora_A, start.micro.lora_A)
            assert np.array_equal(step.weights.micro.lora_B[:, 1:], start.micro.lora_B[:, 1:])

    asyncio.run(run())


async def test_budget_is_used_not_wasted():
    host, captures = answers(1)
    start = weights_of(3)
    signal = TokenSignal(weights=start, advantages=[np.ones(T, dtype=np.float32)])
    curvature = await host.curvature(captures)
    direction, _ = step_of(await host.gradient(captures, signal), moments_of(curvature), pace_of(curvature))
    found = await within_budget(host, captures, start, direction, 1e-3)
    assert found is not None
    assert 0.5e-3 < found[1] <= 1e-3


@pytest.mark.parametrize("advantage", [1.0, -1.0])
async def test_step_moves_the_answers_likelihood_the_right_way(advantage):
    host, captures = answers(1, seed=5)
    curvature = await host.curvature(captures)
    start = initial_weights(curvature, 2, "k")
    step = await instant_step(
        host,
        captures[0],
        start,
        moments_of(curvature),
        advantage=advantage,
        demonstration=False,
        anchor=0.0,
        pace=pace_of(curvature),
        step_kl=1e-3,
    )
    seen = await host.evaluate(captures, step.weights)
    change = float(np.sum(seen.logprobs[0] - seen.base_logprobs[0]))
    assert change * advantage > 0.01


async def test_adapter_at_birth_changes_nothing_but_can_push_a_constant():
    """Which the mean state cannot, where one entry is large and varies; on answers not seen at birth."""
    host, captures = answers(24)
    curvature = await host.curvature(captures[:12])
    weights = initial_weights(curvature, 2, "a/b/*")
    hidden = np.concatenate([c.hidden for c in captures[12:]])
    assert not weights.delta(hidden).any()
    constant = hidden @ weights.micro.lora_A[0]
    by_mean = hidden @ (hidden.mean(axis=0) / np.square(hidden.mean(axis=0)).sum())
    assert constant.mean() == pytest.approx(1.0, abs=0.1)
    assert constant.std() < 0.8 * by_mean.std()
    again = initial_weights(curvature, 2, "a/b/*")
    assert np.array_equal(weights.micro.lora_A, again.micro.lora_A)


def curvature_with(matrix, k=D):
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors.T[::-1]
    rest = float(values[k:].mean()) if k < len(values) else 0.0
    spectrum = Spectrum(vectors[:k].astype(np.float32), values[:k].astype(np.float32), rest)
    return Curvature(100, 2.0, np.zeros(D, dtype=np.float32), spectrum, np.zeros((0, D), dtype=np.float32))


@given(st.integers(0, 10_000), st.floats(1e-3, 1.0), st.integers(1, D))
def test_spectrum_solves_what_it_stands_for(seed, ridge, k):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((64, D)) * rng.exponential(size=D)
    spectrum = curvature_with(scores.T @ scores / 64, k).outputs
    vectors = spectrum.vectors.astype(np.float64)
    kept = vectors.T @ (spectrum.values[:, None] * vectors)
    whole = kept + spectrum.rest * (np.eye(D) - vectors.T @ vectors) + ridge * spectrum.values[0] * np.eye(D)
    columns = rng.standard_normal((D, 2)).astype(np.float32)
    np.testing.assert_allclose(
        spectrum.solve(columns, ridge), np.linalg.solve(whole, columns), rtol=2e-3, atol=1e-5
    )


def test_b_takes_natural_steps_and_a_adams_both_as_far_as_the_evidence_allows():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((64, D)) * np.linspace(0.2, 3, D)
    matrix = scores.T @ scores / 64
    curvature, moments = curvature_with(matrix), {"rms": np.asarray([2.0], dtype=np.float32)}
    pace = pace_of(curvature, stride=0.5, rate=0.01, freedom=0.25)
    ridge = 0.03 * np.linalg.eigvalsh(matrix)[-1]
    m = v = 0.0
    for count in range(1, 5):
        g_a, g_b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, D), (D, 2)))
        direction, moments = step_of(_gradient(g_a, g_b, tokens=4), moments, pace)
        m, v = 0.9 * m + 0.1 * g_a / 4, 0.99 * v + 0.01 * (g_a / 4) ** 2
        adam = (m / (1 - 0.9**count)) / np.sqrt(v / (1 - 0.99**count))
        np.testing.assert_allclose(direction.lora_A, 0.25 * 0.01 / (2.0 * D**0.5) * adam, rtol=1e-4)
        natural = 0.5 * np.linalg.solve(matrix + ridge * np.eye(D), g_b / 4) * [1.0, 0.25]
        np.testing.assert_allclose(direction.lora_B, natural, rtol=1e-3, atol=1e-6)
    assert set(moments) == {"rms", "count", "m_A", "v_A"}


def _gradient(g_a, g_b, tokens=1):
    from sona_stream.lora import LoraGradient

    return LoraGradient(g_a, g_b, None, None, tokens, 0.0, 0.0, 0.0)


def test_moves_compose():
    start, end, onto = weights_of(1), weights_of(2), weights_of(3)
    both = shifted(start, end, onto)
    np.testing.assert_allclose(
        both.micro.lora_B, onto.micro.lora_B + end.micro.lora_B - start.micro.lora_B, atol=1e-6
    )
    h = np.ones((1, D), dtype=np.float32)
    np.testing.assert_allclose(contracted(start, 0.5).delta(h), 0.5 * start.delta(h), rtol=1e-5)
    direction = Direction(start.micro.lora_A, start.micro.lora_B)
    assert np.array_equal(moved(start, direction, 0.0).micro.lora_B, start.micro.lora_B)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.just(0.0) | st.floats(1e-6, 32))
def test_baseline_is_the_shrunk_mean(qualities, shrinkage):
    baseline = Baseline(shrinkage)
    for i, quality in enumerate(qualities):
        baseline.push(quality, "p" if i % 2 else "q")
    n, mean = len(qualities), float(np.mean(qualities))
    tenant = (n * mean + 2 * 0.5) / (n + 2)
    own = qualities[1::2]
    expected = (sum(own) + shrinkage * tenant) / (len(own) + shrinkage) if len(own) + shrinkage else tenant
    spread = max(0.05, math.sqrt((n * float(np.var(qualities)) + 2 * 0.09) / (n + 2)))
    for quality in (0.0, 0.3, 1.0):
        advantage = max(-3.0, min(3.0, (quality - expected) / spread))
        assert baseline.advantage(quality, "p") == pytest.approx(advantage, abs=1e-6)
    again = Baseline.from_json(__import__("json").loads(__import__("json").dumps(baseline.to_json())), shrinkage)
    assert again.advantage(0.7, "q") == baseline.advantage(0.7, "q")


def test_prompts_whose_answers_were_all_rated_alike_explain_everything_but_the_one_asked_once():
    qualities, prompts = [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1.0], [1, 1, 2, 2, 3, 3, 4, 4, 5]
    values = advantages(qualities, ["a"] * 9, 8.0, prompts)
    assert values[:8] == pytest.approx([0.0] * 8)
    assert values[8] > 1.0


def test_advantages_of_equal_judgements_are_nearly_equal_and_signs_follow_quality():
    values = advantages([0.2, 0.9, 0.9, 0.1], ["a", "a", "b", "b"], 8.0)
    assert values[0] < 0 < values[1]
    assert values[3] < 0 < values[2]


def test_what_a_prompt_explains_is_taken_off():
    """Half of the variance is the prompts': taking it off leaves advantages that follow the answers closer."""
    rng = np.random.default_rng(0)
    kept, plain = [], []
    for _ in range(20):
        prompts = np.repeat(np.arange(30), 5)
        own = rng.standard_normal(150)
        qualities = 0.5 + 0.1 * (own + rng.standard_normal(30)[prompts])
        values = [advantages(list(qualities), ["p"] * 150, 8.0, names) for names in ((), list(prompts))]
        plain.append(np.corrcoef(values[0], own)[0, 1])
        kept.append(np.corrcoef(values[1], own)[0, 1])
        assert np.linalg.norm(values[0]) == pytest.approx(np.linalg.norm(values[1]), rel=0.02)
    assert np.mean(plain) == pytest.approx(np.sqrt(0.5), abs=0.05)
    assert np.mean(kept) > 0.87  # leaving one of five out, the best possible is 0.89


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 40))
def test_prompts_that_do_not_differ_or_come_once_change_nothing(qualities, every):
    plain = advantages(qualities, ["p"] * len(qualities), 8.0)
    assert advantages(qualities, ["p"] * len(qualities), 8.0, list(range(len(qualities)))) == plain
    same = advantages(qualities, ["p"] * len(qualities), 8.0, [i % every for i in range(len(qualities))])
    assert all(math.isfinite(one) and abs(one) <= 3 for one in same)
    assert advantages([0.4] * 9, ["p"] * 9, 8.0, [0, 0, 0, 1, 1, 1, 2, 2, 2]) == pytest.approx([0.0] * 9, abs=0.2)


def plan(**changes):
    fields = {
        "steps": 40,
        "tokens": 64,
        "top_k": None,
        "anchor": 0.05,
        "ratio_clip": (0.7, 1.3),
        "shrinkage": 8.0,
        "quality_threshold": 0.5,
        "max_kl_to_base": 0.5,
    }
    return Plan(**{**fields, **changes})


def lessons(captures, qualities):
    return [
        Lesson(c, q, ("*", "General"), f"f{i}") for i, (c, q) in enumerate(zip(captures, qualities, strict=True))
    ]


def test_threshold_gates_only_pushing_towards():
    _, captures = answers(4)
    taught = lessons(captures, [0.0, 0.1, 0.3, 0.45])
    assert all(w.advantage < 0 for w in weigh(taught, plan(quality_threshold=0.5)))
    assert any(w.advantage > 0 for w in weigh(taught, plan(quality_threshold=0.2)))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(6, 100), st.integers(0, 5))
def test_minibatches_hold_each_answer_once_an_epoch_and_are_balanced(good, bad, tokens, seed):
    _, [capture] = answers(1)
    items = [Weighed(Lesson(capture, None, ("*",), str(i)), 1.0 if i < good else -1.0) for i in range(good + bad)]
    batches = minibatches(items, tokens, seed)
    seen = []
    while len(seen) < len(items):
        batch = next(batches)
        assert len(batch) == 1 or sum(len(w.lesson.capture) for w in batch) <= tokens
        seen += [w.lesson.feedback_id for w in batch]
        share = sum(w.advantage > 0 for w in batch)
        assert abs(share - len(batch) * good / (good + bad)) <= 2
    assert sorted(seen) == sorted(w.lesson.feedback_id for w in items)


async def test_replay_learns_a_preference_and_stays_within_the_kl_bound():
    host, captures = answers(64, seed=7)
    quality = [float(np.isin(c.token_ids, [1, 2, 3]).mean()) for c in captures]
    spread = [min(1.0, 2 * q) for q in quality]
    curvature = await host.curvature(captures)
    start, moments = initial_weights(curvature, 2, "k"), moments_of(curvature)
    bound = plan(steps=150, max_kl_to_base=0.2, anchor=0.02, quality_threshold=0.0)
    pace = pace_of(curvature, stride=1.0, freedom=1.0)
    result = await fit(host, weigh(lessons(captures, spread), bound), start, moments, bound, pace, seed=0)
    mass = [
        np.exp(host.logp(c.hidden.astype(np.float64), w, 1.0))[:, [1, 2, 3]].mean()
        for w in (None, result.weights)
        for c in captures
    ]
    before, after = np.mean(mass[:64]), np.mean(mass[64:])
    assert after > 1.2 * before
    seen = await host.evaluate(captures, result.weights)
    assert seen.mean_kl_to_base <= 0.2 * 1.3


LIMITS = Limits(max_kl_to_base=0.5, max_delta_ratio=0.4, max_logprob_drop=0.3)


def evaluation(*, kl=0.1, ratio=0.1, drop=0.0, finite=True):
    base = np.full(4, -1.0, dtype=np.float32)
    return Evaluation(kl, kl, [base - np.float32(drop)], [base], ratio, ratio, finite)


@pytest.mark.parametrize(
    ("seen", "gate"),
    [
        (evaluation(), ""),
        (evaluation(kl=0.51), "kl_to_base"),
        (evaluation(ratio=0.41), "delta_ratio"),
        (evaluation(drop=0.31), "logprob_drop"),
        (evaluation(finite=False), "finite"),
        (evaluation(kl=float("nan")), "finite"),
        (evaluation(drop=float("inf")), "finite"),
    ],
)
def test_each_gate_blocks_what_it_is_for(seen, gate):
    verdict = judge(weights_of(0), seen, [True], LIMITS)
    assert verdict.gate == gate
    assert verdict.ok is (gate == "")


def test_nan_weights_are_blocked_and_rejected_answers_may_fall():
    bad = weights_of(0)
    bad.micro.lora_B[0, 0] = np.nan
    assert judge(bad, evaluation(), [True], LIMITS).gate == "finite"
    assert judge(weights_of(0), evaluation(drop=5.0), [False], LIMITS).ok


@given(*(st.text(min_size=1, max_size=12) for _ in range(3)))
def test_keys_survive_any_name(model, tenant, group):
    key = AdapterKey(model, tenant, group)
    assert AdapterKey.parse(str(key)) == key
    assert not set("/@") & set("".join(str(key).rsplit("/", 2)[1:]))


def test_chain_goes_from_everything_to_the_pattern():
    route = RouteDecision(model="m", reason="", pattern="p1", pattern_type="CodeGen")
    assert [key.group for key in chain("m", "t", route)] == ["*", "CodeGen", "pattern:p1"]
    named = RouteDecision(model="m", reason="", pattern="CodeGen", pattern_type="General")
    assert [key.group for key in chain("m", "t", named)] == ["*", "General", "pattern:CodeGen"]
    assert [key.group for key in chain("m", "t", None)] == ["*"]
    for broken in ("a/b", "a//c", "/b/c", "a/b/", ""):
        with pytest.raises(ValueError, match="model/tenant/group"):
            AdapterKey.parse(broken)


def test_book_is_bounded_and_keeps_the_newest():
    _, captures = answers(5)
    book = LessonBook(3)
    for i, capture in enumerate(captures):
        book.add(Lesson(capture, 1.0, ("*", "General") if i % 2 else ("*", "Factual"), str(i)))
    assert [lesson.feedback_id for lesson in book] == ["2", "3", "4"]
    assert [one.feedback_id for one in book.of(AdapterKey("m", "t", "Factual"))] == ["2", "4"]
    book.forget(["3", "unknown"])
    assert len(book) == 2
