"""Sums of squares on the device."""

from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import over_all
from xpnn.kernels.cupy.source import ACCUMULATION, C_TYPES, THREADS, Source, accumulation, in_one_order, of_each_type

SUMS = Source("norms.cu", of_each_type("sums<T, true>", "sums<Acc, false>"))


@kernel("optim.norms.sum_of_squares", "cupy")
def sum_of_squares(x: Any) -> Any:
    (x,), char = in_one_order(x), x.dtype.char
    out = cupy.empty((), dtype=accumulation(x))
    blocks = over_all(x)
    sums = out if blocks == 1 else cupy.empty(blocks, dtype=out.dtype)
    SUMS.launch(f"sums<{C_TYPES[char]}, true>", (blocks,), (THREADS,), (x.size, x, sums))
    if blocks > 1:
        SUMS.launch(f"sums<{ACCUMULATION[char]}, false>", (1,), (THREADS,), (blocks, sums, out))
    return out
