"""The example of per-layer adapters, as its user runs it, on a tiny model: it goes through, whatever it learns."""

import re
from pathlib import Path

from program import run_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "per_layer.py"


def test_both_models_are_measured_before_and_after(tiny_folder):
    few = ["--ratings", "4", "--unseen", "2", "--layers", "0,2", "--rank", "1"]
    ran = run_python(str(EXAMPLE), "--model", str(tiny_folder), *few, PYTHONWARNINGS="error")
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = re.findall(r"^(before|final|layers) +[01]\.\d+ +\d\.\d+", ran.stdout, re.M)
    assert rows == ["before", "final", "layers"]
    assert re.search(r"layers: 4 answers rated, mean reward [01]\.\d\d", ran.stdout)
