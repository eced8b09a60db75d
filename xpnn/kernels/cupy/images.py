"""Moving pixels on the device, in one launch, and saying where from, in another."""

import math
from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy import source
from xpnn.kernels.cupy.source import FLAGS, THREADS, Source

BITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "u64"}  # by the size of a number
PACKS = BITS | {16: "Pack<u64, 2>"}  # by the size of what a thread moves at once
PIXELS = 4  # for a thread
BLOCKS = 1024  # of an image, at most

IMAGES = Source(
    "images.cu",
    [
        *(f"pick<{bits}, {last}>" for bits in BITS.values() for last in FLAGS.values()),
        *(f"taken<{pack}>" for pack in PACKS.values()),
        *("shifted", "mirrored", "then"),
    ],
)


@kernel("data.images.pick", "cupy")
def pick(x: Any, indices: Any = None, rows: Any = None, columns: Any = None) -> Any:
    """Keeps the order in memory: channels last or not."""
    n = x.shape[0] if indices is None else indices.shape[0]
    _, c, h, w = x.shape
    h = h if rows is None else rows.shape[1]
    w = w if columns is None else columns.shape[1]
    last = c > 1 and x.strides[1] < x.strides[3]
    out = cupy.empty((n, h, w, c), x.dtype).transpose(0, 3, 1, 2) if last else cupy.empty((n, c, h, w), x.dtype)
    if out.size:
        places = [None if index is None else cupy.ascontiguousarray(index) for index in (indices, rows, columns)]
        strides = [stride // x.itemsize for stride in x.strides]
        blocks = min(math.ceil(c * h * w / (PIXELS * THREADS)), BLOCKS)
        name = f"pick<{BITS[x.itemsize]}, {FLAGS[last]}>"
        IMAGES.launch(name, (n, blocks), (THREADS,), (x, out, *places, c, h, w, *strides))
    return out


@kernel("data.images.taken", "cupy")
def taken(x: Any, indices: Any) -> Any:
    """Keeps the order in memory, as `pick` does."""
    last = x.ndim == 4 and not x.flags.c_contiguous
    examples = x.transpose(0, 2, 3, 1) if last else x
    if not examples.flags.c_contiguous or indices.ndim != 1:
        return cupy.take(x, indices, axis=0)
    out = cupy.empty((len(indices), *examples.shape[1:]), dtype=x.dtype)
    if out.size:
        size = out[0].nbytes
        unit = math.gcd(size, x.data.ptr, out.data.ptr, max(PACKS))
        blocks = min(math.ceil(size / unit / THREADS), BLOCKS)
        indices = cupy.ascontiguousarray(indices, dtype="int64")
        IMAGES.launch(f"taken<{PACKS[unit]}>", (len(out), blocks), (THREADS,), (x, indices, size // unit, out))
    return out.transpose(0, 3, 1, 2) if last else out


@kernel("data.images.shifted", "cupy")
def shifted(shifts: Any, size: int) -> Any:
    return _places("shifted", len(shifts), size, cupy.ascontiguousarray(shifts, dtype="int64"))


@kernel("data.images.mirrored", "cupy")
def mirrored(coins: Any, size: int) -> Any:
    return _places("mirrored", len(coins), size, cupy.ascontiguousarray(coins, dtype="int64"))


@kernel("data.images.then", "cupy")
def then(first: Any, second: Any) -> Any:
    first, second = (cupy.ascontiguousarray(places, dtype="int64") for places in (first, second))
    return _places("then", *second.shape, first, first.shape[1], second)


def _places(name: str, n: int, size: int, *args: Any) -> Any:
    out = cupy.empty((n, size), dtype="int64")
    if out.size:
        IMAGES.launch(name, (min(-(-out.size // THREADS), source.BLOCKS),), (THREADS,), (n, size, *args, out))
    return out
