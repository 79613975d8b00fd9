"""The same tests on an engine that compiles its model, in a process of their own: minutes, so under `--slow`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_exactness.py", "test_exactness_smollm2.py"])
def test_compiled(request, name):
    if request.config.getoption("--compiled") or request.config.getoption("--runner") == "v2":
        pytest.skip("this is another engine")
    command = [sys.executable, "-m", "pytest", "--compiled", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    ran = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " skipped" not in ran.stdout
