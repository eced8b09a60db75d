"""Masks of dropout, of the same random bits as on the host, in one launch."""

import math
from typing import Any

import cupy
import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.source import C_TYPES, THREADS, Source, accumulation, given, of_each_type

DROPOUT = Source("dropout.cu", of_each_type("dropout_mask<T>"))


@kernel("random.dropout_mask", "cupy")
def dropout_mask(seed: int, stream: int, counter: Any, n: int, p: float, dtype: str) -> Any:
    mask = cupy.empty(n, dtype=dtype)
    if n:
        blocks = min(math.ceil(n / (8 * THREADS)), source.BLOCKS)
        dropped = np.uint32(min(round(p * 2**32), 2**32 - 1))
        kept = float(mask.dtype.type(1 / (1 - p)))  # as rounded on the host
        counted = given(counter, np.uint64)
        args = (np.uint64(seed), np.uint64(stream), *counted, n, dropped, accumulation(mask)(kept), mask)
        DROPOUT.launch(f"dropout_mask<{C_TYPES[mask.dtype.char]}>", (blocks,), (THREADS,), args)
    return mask
