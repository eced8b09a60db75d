"""Kernels for CuPy: CUDA sources beside this file, compiled at first use."""

import functools
import math
from importlib.resources import files
from typing import Any

import cupy

from xpnn.kernels import kernel

THREADS = 256


@functools.cache
def _function(source: str, name: str) -> Any:
    return cupy.RawKernel(files(__name__).joinpath(source).read_text(), name)


@kernel("random.philox", "cupy")
def philox(seed: int, stream: int, counter: int, n: int) -> cupy.ndarray:
    out = cupy.empty(n, dtype="uint64")
    grid = math.ceil(n / (4 * THREADS))
    if grid:
        unsigned = cupy.uint64
        args = (unsigned(seed), unsigned(stream), unsigned(counter), unsigned(n), out)
        _function("philox.cu", "philox")((grid,), (THREADS,), args)
    return out


@kernel("special.erf", "cupy")
def erf(x: Any) -> Any:
    from cupyx.scipy import special

    return special.erf(x).astype(x.dtype, copy=False)
