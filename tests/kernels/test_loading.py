"""What is imported when, and what happens where nothing may be written."""

import inspect
import subprocess
import sys

import pytest

from sona_stream.kernels import contract, load


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_numpy_path_never_imports_numba():
    code = """
import sys, warnings, numpy as np
warnings.simplefilter("ignore")
from sona_stream import SonaEngine
engine = SonaEngine.with_config({"hiddenDim": 8, "enableSimd": False, "ewcLambda": 1})
x = np.ones(8, np.float32)
for q in (0.2, 0.9):
    t = engine.begin_trajectory(x)
    engine.add_trajectory_step(t, x, [], q)
    engine.add_trajectory_step(t, -x, [0.5, 0.5], 0.1)
    engine.end_trajectory(t, q)
engine.apply_micro_lora(x), engine.apply_base_lora(0, x), engine.force_learn(), engine.find_patterns(x, 1)
SonaEngine.from_bytes(engine.to_bytes())
assert not [m for m in sys.modules if m.split(".")[0] in ("numba", "llvmlite")]
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_importing_loads_neither():
    done = run("import sys, sona_stream.kernels, sona_stream.engine; assert 'numba' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiled", [True, False])
def test_both_offer_the_whole_contract(compiled):
    kernels = load(compiled=compiled)
    names = [name for name, member in inspect.getmembers(contract.Kernels, inspect.isfunction) if name[0] != "_"]
    assert sorted(names) == sorted(kernels.__all__)


def test_without_a_writable_cache_it_compiles_all_the_same(monkeypatch):
    from numba import types

    from sona_stream.kernels.compiled import jit

    real = jit.nb.njit

    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'x'")
        return real(*args, **options)

    monkeypatch.setattr(jit.nb, "njit", njit)

    @jit.kernel(types.float64(types.float64), nogil=False)
    def twice(x):
        return 2 * x

    assert twice(2.0) == 4.0


def test_another_compile_error_is_not_hidden(monkeypatch):
    from sona_stream.kernels.compiled import jit

    def njit(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(jit.nb, "njit", njit)
    with pytest.raises(RuntimeError, match="something else"):
        jit.kernel(None, nogil=False)(lambda x: x)
