"""Sums of squares on the device."""

from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import ACCUMULATION, C_TYPES, THREADS, Source, accumulation, in_one_order, of_each_type

BYTES = 64 * THREADS  # of a block, at least
BLOCKS = 1024  # at most: a second launch adds up their sums

SUMS = Source("norms.cu", of_each_type("sums<T, true>", "sums<Acc, false>"))


@kernel("optim.norms.sum_of_squares", "cupy")
def sum_of_squares(x: Any) -> Any:
    (x,), char = in_one_order(x), x.dtype.char
    out = cupy.empty((), dtype=accumulation(x))
    blocks = min(max(-(-x.nbytes // BYTES), 1), BLOCKS)
    sums = out if blocks == 1 else cupy.empty(blocks, dtype=out.dtype)
    SUMS.launch(f"sums<{C_TYPES[char]}, true>", (blocks,), (THREADS,), (x.size, x, sums))
    if blocks > 1:
        SUMS.launch(f"sums<{ACCUMULATION[char]}, false>", (1,), (THREADS,), (blocks, sums, out))
    return out
