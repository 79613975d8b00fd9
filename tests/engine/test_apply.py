"""apply_*: always x + delta, for every input form; refusals; both arithmetic paths."""

import threading

import numpy as np
import pytest


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def taught(request, tasks):
    made = tasks.engine(hidden_dim=48, enable_simd=request.param, base_lora_lr=0.01)
    random = np.random.default_rng(1)
    u = tasks.direction(random, 48)
    for _ in range(60):
        x = tasks.direction(random, 48)
        tasks.trajectory(made, x, [(u, 1.0), (tasks.direction(random, 48), 0.0)], 0.9)
    made.force_learn()
    return made


def appliers(engine):
    return [engine.apply_micro_lora, lambda x: engine.apply_base_lora(3, x)]


def test_a_new_engine_is_the_identity(tasks):
    made = tasks.engine(hidden_dim=48)
    x = np.random.default_rng(0).standard_normal(48).astype(np.float32)
    for apply in appliers(made):
        np.testing.assert_array_equal(apply(x), x)
        assert apply(x) is not x


def test_every_input_form_gives_the_same_float32(taught):
    random = np.random.default_rng(0)
    X = random.standard_normal((5, 48)).astype(np.float32)
    wide = np.zeros((5, 96), np.float32)
    wide[:, ::2] = X
    frozen = X.copy()
    frozen.setflags(write=False)
    for apply in appliers(taught):
        expected = apply(X)
        assert expected.dtype == np.float32
        assert expected.shape == X.shape
        assert not np.allclose(expected, X, atol=1e-4)
        forms = [X.tolist(), X.astype(np.float64), wide[:, ::2], np.asfortranarray(X), frozen, X.astype(">f4")]
        for form in forms:
            np.testing.assert_array_equal(apply(form), expected)
        for row, out in zip(X, expected, strict=True):
            for form in (row, row.tolist(), row.astype(np.float64), tuple(row)):
                np.testing.assert_allclose(apply(form), out, atol=1e-5)
        np.testing.assert_allclose(apply(wide[0, ::2]), expected[0], atol=1e-5)
        assert apply(np.zeros((0, 48), np.float32)).shape == (0, 48)


def test_an_output_is_as_quick_an_input_as_any(taught, monkeypatch):
    """Layer after layer is applied to what the last one returned: none of them may go the long way round."""
    x = np.ones(48, np.float32)
    once = taught.apply_micro_lora(x)
    twice = taught.apply_micro_lora(once.tolist())
    monkeypatch.setattr(taught, "_apply", None)
    np.testing.assert_array_equal(taught.apply_micro_lora(taught.apply_micro_lora(x)), twice)


def test_the_input_is_never_changed_nor_returned(taught):
    x = np.ones(48, np.float32)
    for apply in appliers(taught):
        out = apply(x)
        assert not np.shares_memory(out, x)
        np.testing.assert_array_equal(x, 1)
        first = out.copy()
        apply(2 * x)
        np.testing.assert_array_equal(out, first)


BAD = {
    "short": np.ones(47),
    "long": np.ones(49),
    "empty": [],
    "three axes": np.ones((1, 1, 48)),
    "scalar": 1.0,
    "none": None,
    "text": "abc",
    "ragged": [[1.0] * 48, [1.0]],
    "nan": np.full(48, np.nan),
    "inf": np.full(48, np.inf, np.float32),
    "one nan": np.where(np.arange(48) == 47, np.nan, 1).astype(np.float32),
    "nan in a batch": np.where(np.arange(96).reshape(2, 48) == 70, np.nan, 1).astype(np.float32),
    "beyond float32": np.full(48, 1e39),
    "complex": np.ones(48) * 1j,
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_name_the_argument(taught, name):
    for apply in appliers(taught):
        with pytest.raises(ValueError, match=r"^x "):
            apply(BAD[name])


def test_large_finite_values_pass_the_exact_scan(tasks):
    made = tasks.engine(hidden_dim=48)
    x = np.full(48, 1e30, np.float32)
    np.testing.assert_array_equal(made.apply_micro_lora(x), x)


def test_an_output_that_does_not_fit_is_refused(taught):
    random, outcomes = np.random.default_rng(3), []
    for _ in range(50):
        x = np.float32(3.3e38) * np.sign(random.standard_normal(48)).astype(np.float32)
        try:
            outcomes.append(str(np.isfinite(taught.apply_micro_lora(x)).all()))
        except ValueError as error:
            outcomes.append(str(error))
    assert set(outcomes) <= {"True", "x is too large: the adapted vector does not fit float32"}
    assert len(set(outcomes) - {"True"}) == 1


@pytest.mark.parametrize("layer", [-1, 4096, 1.0, True, "0", None])
def test_a_layer_is_a_small_whole_number(tasks, layer):
    with pytest.raises(ValueError, match=r"^layer must be"):
        tasks.engine(hidden_dim=48).apply_base_lora(layer, np.ones(48))


def test_disabled_is_the_identity_and_enabled_adapts_again(taught):
    x = np.ones(48, np.float32)
    adapted = taught.apply_micro_lora(x)
    taught.set_enabled(False)
    assert not taught.is_enabled()
    for apply in appliers(taught):
        np.testing.assert_array_equal(apply(x), x)
        with pytest.raises(ValueError, match="finite"):
            apply(x * np.nan)
    taught.set_enabled(True)
    np.testing.assert_array_equal(taught.apply_micro_lora(x), adapted)


def test_both_paths_agree_after_the_same_lessons(tasks):
    made = {simd: tasks.four_clusters(5, 300, enable_simd=simd)[0] for simd in (True, False)}
    X = np.random.default_rng(0).standard_normal((20, tasks.DIM)).astype(np.float32)
    fast, plain = (made[simd].apply_micro_lora(X) - X for simd in (True, False))
    assert np.linalg.norm(plain) > 0.05
    # Rounding differs by one part in 1e7 a step and is fed back 300 times.
    assert np.linalg.norm(fast - plain) <= 1e-2 * np.linalg.norm(plain)
    snapshot = made[True].to_bytes()
    twin = type(made[True]).from_bytes(snapshot, config=tasks.config(enable_simd=False))
    np.testing.assert_allclose(twin.apply_micro_lora(X), made[True].apply_micro_lora(X), atol=2e-5)


def test_readers_on_other_threads_see_whole_snapshots(tasks):
    """While weights change, every reader's output belongs to one published version, never to half of one."""
    made = tasks.engine(hidden_dim=64, micro_lora_lr=0.05)
    x = tasks.direction(np.random.default_rng(0), 64).astype(np.float32)
    published, seen, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(made.apply_micro_lora(x))

    reader = threading.Thread(target=read)
    reader.start()
    random = np.random.default_rng(2)
    for _ in range(300):
        tasks.trajectory(made, x, [(tasks.direction(random, 64), random.random()) for _ in range(2)], 0.9)
        published.append(made.apply_micro_lora(x).tobytes())
    stop.set()
    reader.join()
    whole = {x.tobytes(), *published}
    assert len(seen) > 0
    # The EWC pull and the step are two publications; with no earlier task there is only the step.
    assert {out.tobytes() for out in seen} <= whole
