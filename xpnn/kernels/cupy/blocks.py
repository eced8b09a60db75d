"""Rows in memory: their types, and grids of blocks for them."""

import math
from typing import Any

import cupy

from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.source import THREADS, WARP

COLUMNS = 64  # of a block, at most
MOST_THREADS = 512  # as in columns.cuh
ROWS = 32  # of a thread, before there is a second chunk
CHUNKS = 512  # at most, over all columns

Grid = tuple[int, ...]


def over_rows(n: int, width: int, threads: int = THREADS) -> tuple[Grid, Grid]:
    """Return grid and block, so that the threads of a block are side by side in one row or several; all then loop."""
    tiles = math.ceil(width / COLUMNS)
    columns = math.ceil(width / tiles)
    rows = threads // columns
    return (tiles, min(math.ceil(n / rows), max(source.BLOCKS // tiles, 1))), (columns, rows)


def in_chunks(n: int, d: int) -> tuple[Grid, Grid, int]:
    """Return grid and block for sums of the columns of rows (n, d), and the rows of a chunk: see columns.cuh."""
    (tiles, _), block = over_rows(n, d, MOST_THREADS)
    chunks = min(math.ceil(n / (ROWS * block[1])), max(CHUNKS // tiles, 1))
    rows = math.ceil(n / chunks)
    return (tiles, math.ceil(n / rows)), block, rows


def over_all(x: Any) -> int:
    """Return how many blocks go through all numbers of x, each for a result of its own: one more launch joins these."""
    return min(max(math.ceil(x.nbytes / (64 * THREADS)), 1), 1024)


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
