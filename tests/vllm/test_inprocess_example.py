"""The example, as its user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm_in_process.py"


def test_the_example_is_taught(model_folder, request):
    if request.config.getoption("--runner") != "v1":
        pytest.skip("the interpreter of the second runner is not for processes of the engine's own")
    command = [sys.executable, str(EXAMPLE), str(model_folder)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.startswith("adapter none: "), ran.stdout
    # Remembered at once, or where there is no memory a step of the adapter: either way the next answer is the one
    # that was wanted.
    assert re.search(r"^corrected: (accepted remembered|published)", ran.stdout, re.M), ran.stdout
    assert ran.stdout.rstrip().endswith("Much light, little water."), ran.stdout
