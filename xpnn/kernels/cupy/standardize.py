"""Raw images on their way into a net, in one launch: cast, standardized, and laid out for convolutions."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.images import BLOCKS, PIXELS
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, accumulation, of_each_type

STANDARDIZE = Source("standardize.cu", of_each_type("standardized<unsigned char, T>", "standardized<T, T>"))


@kernel("layers.standardize.standardized", "cupy")
def standardized(x: Any, mean: Any, std: Any, dtype: str) -> Any:
    """Images come out with their channels last in memory."""
    x = x if x.dtype == "uint8" else x.astype(dtype, copy=False)
    (n, *example), c = x.shape, x.shape[1] if x.ndim == 4 else 1
    pixels = math.prod(example) // max(c, 1)
    last = x.ndim == 4 and x.transpose(0, 2, 3, 1).flags.c_contiguous
    x = x if last else cupy.ascontiguousarray(x)
    out = cupy.empty((n, *example[1:], c) if x.ndim == 4 else x.shape, dtype=dtype)
    if out.size:
        statistics = [None if y is None else cupy.ascontiguousarray(y, dtype=accumulation(out)) for y in (mean, std)]
        name = f"standardized<{C_TYPES.get(x.dtype.char, 'unsigned char')}, {C_TYPES[out.dtype.char]}>"
        blocks = min(math.ceil(c * pixels / (PIXELS * THREADS)), BLOCKS)
        strides = (1, c) if last else (pixels, 1)
        STANDARDIZE.launch(name, (n, blocks), (THREADS,), (x, *statistics, out, c, pixels, *strides))
    return out.transpose(0, 3, 1, 2) if x.ndim == 4 else out
