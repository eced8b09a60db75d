"""Norms on the device: sums of squares, and what clips gradients to a norm."""

import math
from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import over_all
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, accumulation, in_one_order, of_each_type

ARRAYS = 240  # at one launch, which takes 4 KB of arguments
NORMS = Source("norms.cu", of_each_type("squares<T>", "sum<Acc>", "clip_factor<Acc>"))
LIST = np.dtype([("arrays", np.dtype([("x", "u8"), ("n", "i8")]), (ARRAYS,))])


@kernel("optim.norms.sum_of_squares", "cupy")
def sum_of_squares(x: Any) -> Any:
    sums = _sums_of_squares([x])
    if sums.size == 1:
        return sums.reshape(())
    out = cupy.empty((), dtype=sums.dtype)
    NORMS.launch(f"sum<{C_TYPES[sums.dtype.char]}>", (1,), (THREADS,), (sums.size, sums, out))
    return out


@kernel("optim.norms.clip_factor", "cupy")
def clip_factor(arrays: Sequence[Any], max_norm: float) -> Any:
    sums = _sums_of_squares(arrays)
    out = cupy.empty((), dtype=sums.dtype)
    args = sums.size, sums, accumulation(sums)(max_norm), out
    NORMS.launch(f"clip_factor<{C_TYPES[sums.dtype.char]}>", (1,), (THREADS,), args)
    return out


def _sums_of_squares(arrays: Sequence[Any]) -> Any:
    """What each block has added up, of as few launches as all arrays take."""
    dtypes = {x.dtype for x in arrays}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*map(accumulation, arrays))
    arrays = [in_one_order(x.astype(dtype, copy=False))[0] for x in arrays]
    some = [arrays[first : first + ARRAYS] for first in range(0, len(arrays), ARRAYS)]
    grids = [(over_all(max(part, key=lambda x: x.size)), len(part)) for part in some]
    sums = cupy.empty(sum(map(math.prod, grids)), dtype=accumulation(arrays[0]))
    start = 0
    for part, grid in zip(some, grids, strict=True):
        table = np.zeros(1, LIST)
        table["arrays"][0, : len(part)] = [(x.data.ptr, x.size) for x in part]
        NORMS.launch(f"squares<{C_TYPES[dtype.char]}>", grid, (THREADS,), (table, sums[start:]))
        start += math.prod(grid)
    return sums
