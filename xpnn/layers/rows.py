"""Rows of features: images as rows of pixels and back, and sums over many rows."""

import math
from collections.abc import Callable

from xpnn.backend import Array, Shape, namespace


def pixels(x: Array) -> Array:
    """Return the pixels of images (N, C, H, W) as rows (N H W, C): a view where the channels are last in memory."""
    xp = namespace(x)
    n, c, h, w = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 3, 1)), (n * h * w, c))


def images(rows: Array, shape: Shape) -> Array:
    """Return rows of pixels, or whatever reshapes to (N, H, W, C), as images of `shape` (N, C, H, W)."""
    xp = namespace(rows)
    n, c, h, w = shape
    return xp.permute_dims(xp.reshape(rows, (n, h, w, c)), (0, 3, 1, 2))


def over_rows(reduce: Callable[..., Array], x: Array) -> Array:
    """Sum or average rows (N, D); where they are many first in blocks, then over these.

    NumPy adds rows one by one: over the pixels of a batch, float32 would lose two digits.
    """
    n, d = x.shape
    block = math.gcd(n, 256)
    if n < 1024 or block < 16:
        return reduce(x, axis=0)
    return reduce(reduce(namespace(x).reshape(x, (n // block, block, d)), axis=1), axis=0)
