"""Rows of numbers on NumPy, in blocks that stay in a core's cache, each read once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import BLOCK, WORTH_A_THREAD, split
from xpnn.threads import share

WIDTH = 1024  # numbers: NumPy is slow on many short rows, so several go side by side as one


@kernel("layers.rows.add_rows", "numpy")
def add_rows(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    sums = sum_of(over_blocks(block_sum, [x]), x.shape[1])
    return sums.astype(x.dtype) if out is None else written(sums, out)


def over_blocks(function: Callable[..., Any], arrays: Sequence[np.ndarray], vectors: Sequence[np.ndarray] = ()) -> list:
    """Return ``function(*blocks, *vectors)`` for each block of the arrays' rows, in order.

    The arrays are (N, D), the vectors (D,). A block is (n, k D): k rows side by side, with each vector k times over.
    """
    n, d = arrays[0].shape
    if n <= WIDTH and n * d <= WORTH_A_THREAD:  # a block of its own
        return [function(*arrays, *vectors)] if n else []
    side = max(WIDTH // max(d, 1), 1)

    def of_part(part: slice) -> list:
        whole = part.stop - (part.stop - part.start) % side
        length = side * max(BLOCK // max(side * d, 1), 1)
        blocks = [(rows, side) for rows in split(slice(part.start, whole), length)]
        if whole < part.stop:
            blocks.append((slice(whole, part.stop), 1))
        return [
            function(
                *(array[rows].reshape((rows.stop - rows.start) // k, k * d) for array in arrays),
                *(np.tile(vector, k) for vector in vectors),
            )
            for rows, k in blocks
        ]

    return [result for part in share(of_part, n, WORTH_A_THREAD // max(d, 1), along=True) for result in part]


def block_sum(block: np.ndarray) -> np.ndarray:
    """The sum over a block's rows, of float16 in float32."""
    return np.add.reduce(block, axis=0, dtype=np.float32 if block.dtype == np.float16 else None)


def sum_of(sums: Sequence[np.ndarray], d: int) -> np.ndarray:
    """The sum (D,) of sums (k D,) of blocks, in float64 where there are several."""
    if len(sums) == 1 and len(sums[0]) == d:
        return sums[0]
    return np.add.reduce(columns(sums, d), axis=0)


def columns(vectors: Sequence[np.ndarray], d: int) -> np.ndarray:
    """Vectors (k D,) of blocks as rows (K, D) of float64."""
    rows = [vector.reshape(len(vector) // max(d, 1), d) for vector in vectors]
    return np.concatenate(rows, dtype=np.float64) if rows else np.zeros((0, d))
