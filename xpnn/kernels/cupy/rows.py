"""Sums of rows on the device."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import ACCUMULATION, C_TYPES, Source, accumulation, of_each_type

COLUMNS, LANES = 32, 8  # as in rows.cu
ROWS = 256  # of a chunk, at least
CHUNKS = 256  # at most: they are added up by the second launch

ROW_SUMS = Source("rows.cu", of_each_type("add_rows<T, T>", "add_rows<T, Acc>", "add_rows<Acc, T>"))


@kernel("layers.rows.add_rows", "cupy")
def add_rows(x: Any) -> Any:
    """Many rows are added up in chunks, then the sums of the chunks."""
    n, d = x.shape
    if n == 0 or d == 0:
        return cupy.zeros(d, dtype=x.dtype)
    char, x = x.dtype.char, cupy.ascontiguousarray(x)
    out = cupy.empty(d, dtype=x.dtype)
    chunks = min(math.ceil(n / (ROWS * _side(d))), CHUNKS)
    if chunks == 1:
        add_into(x, out, C_TYPES[char], C_TYPES[char])
    else:
        sums = cupy.empty((chunks, d), dtype=accumulation(x))
        add_into(x, sums, C_TYPES[char], ACCUMULATION[char])
        add_into(sums, out, ACCUMULATION[char], C_TYPES[char])
    return out


def add_into(x: Any, sums: Any, of: str, to: str) -> None:
    """Write into sums (chunks, d) or (d,) those of the rows of x."""
    n, d = x.shape
    side = _side(d)
    chunks = sums.size // d
    rows = math.ceil(math.ceil(n / side) / chunks)
    grid = (math.ceil(side * d / COLUMNS), chunks)
    ROW_SUMS.launch(f"add_rows<{of}, {to}>", grid, (COLUMNS, LANES), (x, sums, x.size, d, side, rows))


def _side(d: int) -> int:
    """How many rows a row of threads reads at once."""
    return max(COLUMNS // d, 1)
