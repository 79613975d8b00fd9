"""The sections of `benchmarks/guide.py`, one a file. Each adds its rows to the report.

BLAS runs on one thread, like our kernels; that must be said before numpy is loaded.
"""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
