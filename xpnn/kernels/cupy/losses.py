"""Losses on the device."""

from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.blocks import of_teams
from xpnn.kernels.cupy.source import ACCUMULATION, C_TYPES, FLAGS, THREADS, Source, accumulation, of_each_type

FEW = 128  # rows that one block takes
MOST_THREADS = 512  # as in losses.cu

LOSSES = Source(
    "losses.cu",
    of_each_type(
        *(
            f"cross_entropy<T, {loss}, {warps}{soft}>"
            for loss in ("T", "Acc")
            for warps in ("true", "false")
            for soft in ("", ", T")
        ),
        "add_losses<T>",
    ),
)


@kernel("losses.cross_entropy", "cupy")
def cross_entropy(x: Any, y: Any, smoothing: float, n: int) -> tuple[Any, Any]:
    return _cross_entropy(x, y, smoothing, n, soft="")


@kernel("losses.soft_cross_entropy", "cupy")
def soft_cross_entropy(x: Any, y: Any, smoothing: float, n: int) -> tuple[Any, Any]:
    return _cross_entropy(x, y, smoothing, n, soft=f", {C_TYPES[x.dtype.char]}")


def _cross_entropy(x: Any, y: Any, smoothing: float, n: int, soft: str) -> tuple[Any, Any]:
    """One launch; where rows are many, one more for the sum of the blocks' losses."""
    rows, c = x.shape
    x, y, scalar = cupy.ascontiguousarray(x), cupy.ascontiguousarray(y), accumulation(x)
    loss, dx = cupy.empty((), dtype=x.dtype), cupy.empty_like(x)
    of, acc = C_TYPES[x.dtype.char], ACCUMULATION[x.dtype.char]
    warps, grid, block = of_teams(rows, c)
    if rows <= FEW and warps:
        grid, block = (1,), (MOST_THREADS,)
    args = (dx, rows, c, scalar(smoothing), scalar(1 / n))
    if grid == (1,):
        LOSSES.launch(f"cross_entropy<{of}, {of}, {FLAGS[warps]}{soft}>", grid, block, (x, y, loss, *args))
    else:
        losses = cupy.empty(grid, dtype=scalar)
        LOSSES.launch(f"cross_entropy<{of}, {acc}, {FLAGS[warps]}{soft}>", grid, block, (x, y, losses, *args))
        LOSSES.launch(f"add_losses<{of}>", (1,), (THREADS,), (losses, loss, grid[0]))
    return loss, dx
