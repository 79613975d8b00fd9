"""Arrays in, arrays out: the arithmetic of low-rank adaptation, twice.

`load(compiled=True)` gives the numba kernels (`kernels.compiled`), `load(compiled=False)` the same functions in
plain numpy (`kernels.reference`). Both agree to float32 rounding; importing this package loads neither.

Conventions: float32, C-contiguous; ``d`` hidden size, ``r`` rank, ``n`` rows, ``V`` vocabulary. Factors come as
``A (r, d)`` and ``Bt (r, d)``, the transpose of lora_B with the scaling multiplied in, so that both are read row
by row: out = x + (A x) Bt. Nothing is validated here; the caller checks the returned sum of squares for
finiteness (any NaN or infinity in the input makes it non-finite).
"""

from __future__ import annotations

from .contract import BROKEN, FLAT, MOVED, UNTOUCHED, Kernels

__all__ = ["BROKEN", "FLAT", "MOVED", "UNTOUCHED", "Kernels", "load"]


def load(*, compiled: bool) -> Kernels:
    """The compiled kernels, or the numpy ones (numba is then never imported)."""
    if compiled:
        from . import compiled as chosen

        return chosen
    from . import reference

    return reference
