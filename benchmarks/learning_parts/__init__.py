"""The parts of `benchmarks/learning.py`, one a file. `plan` says what a part is."""
