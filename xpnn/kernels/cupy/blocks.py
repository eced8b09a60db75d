"""Rows in memory: their types, and grids of blocks for them."""

import math
from typing import Any

import cupy

from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.source import THREADS, WARP

COLUMNS = 64  # of a block, at most

Grid = tuple[int, ...]


def over_rows(n: int, width: int, threads: int = THREADS) -> tuple[Grid, Grid]:
    """Return grid and block, so that the threads of a block are side by side in one row or several; all then loop."""
    tiles = math.ceil(width / COLUMNS)
    columns = math.ceil(width / tiles)
    rows = threads // columns
    return (tiles, min(math.ceil(n / rows), max(source.BLOCKS // tiles, 1))), (columns, rows)


def of_teams(n: int, width: int) -> tuple[bool, Grid, Grid]:
    """Return whether each row is a warp's, or else a block's, with grid and block: see teams.cuh."""
    warps = width <= 32 * WARP
    blocks = math.ceil(n / (THREADS // WARP)) if warps else n
    return warps, (min(blocks, source.BLOCKS),), (THREADS,)


def packed(width: int, *arrays: Any) -> bool:
    """Whether rows of that width can be moved 16 bytes at a time."""
    return width * arrays[0].dtype.itemsize % 16 == 0 and all(x.data.ptr % 16 == 0 for x in arrays)


def of_one_type(*arrays: Any) -> list[Any]:
    """Return the arrays without gaps, and where their types differ in the one that all go into. None stays None."""
    types = {x.dtype for x in arrays if x is not None}
    dtype = cupy.result_type(*types) if len(types) > 1 else arrays[0].dtype
    return [None if x is None else cupy.ascontiguousarray(x, dtype=dtype) for x in arrays]
