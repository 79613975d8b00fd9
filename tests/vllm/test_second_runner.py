"""The same tests on vLLM's second model runner, which a process chooses before it imports vLLM."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_second_runner(request):
    if request.config.getoption("--runner") == "v2":
        pytest.skip("this is the second runner")
    if find_spec("triton") is None:
        pytest.skip("needs Triton: .ci/vllm-env --triton")
    files = [str(HERE / name) for name in ("test_exactness.py", "test_faults.py")]
    command = [sys.executable, "-m", "pytest", "--runner", "v2", "-q", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " skipped" not in ran.stdout
