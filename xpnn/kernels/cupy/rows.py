"""Sums of rows on the device."""

import math
from typing import Any

import cupy

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import C_TYPES, Source, accumulation, fits, of_each_type

COLUMNS, LANES = 32, 8  # as in rows.cu
ROWS = 256  # of a chunk, at least
CHUNKS = 256  # at most: they are added up by the second launch

ROW_SUMS = Source("rows.cu", of_each_type(*(f"add_rows<{x}, {y}>" for x in ("T", "Acc") for y in ("T", "Acc"))))


@kernel("layers.rows.add_rows", "cupy")
def add_rows(x: Any, out: Any = None) -> Any:
    """Many rows are added up in chunks, then the sums of the chunks."""
    n, d = x.shape
    if n == 0 or d == 0 or (out is not None and not fits(out, x)):
        return written(x.sum(axis=0), out)
    x, out = cupy.ascontiguousarray(x), cupy.empty(d, dtype=x.dtype) if out is None else out
    chunks = min(math.ceil(n / (ROWS * _side(d))), CHUNKS)
    if chunks == 1:
        add_into(x, out)
    else:
        sums = cupy.empty((chunks, d), dtype=accumulation(x))
        add_into(x, sums)
        add_into(sums, out)
    return out


def add_into(x: Any, sums: Any) -> None:
    """Write into sums (chunks, d) or (d,) those of the rows of x."""
    of, to = (C_TYPES[array.dtype.char] for array in (x, sums))
    n, d = x.shape
    side = _side(d)
    chunks = sums.size // d
    rows = math.ceil(math.ceil(n / side) / chunks)
    grid = (math.ceil(side * d / COLUMNS), chunks)
    ROW_SUMS.launch(f"add_rows<{of}, {to}>", grid, (COLUMNS, LANES), (x, sums, x.size, d, side, rows))


def _side(d: int) -> int:
    """How many rows a row of threads reads at once."""
    return max(COLUMNS // d, 1)
