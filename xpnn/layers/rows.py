"""Rows of features: images as rows of pixels and back, and sums over many rows."""

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


BLOCK = 256  # rows


def over_rows(reduce: Callable[..., Array], x: Array) -> Array:
    """Sum or average rows (N, D); where they are many first in blocks, then over these.

    NumPy adds rows one by one: over the pixels of a batch, float32 would lose two digits.
    """
    xp, (n, d) = namespace(x), x.shape
    whole = n - n % BLOCK
    if n < 4 * BLOCK:
        return reduce(x, axis=0)
    blocks = reduce(reduce(xp.reshape(x[:whole, :], (whole // BLOCK, BLOCK, d)), axis=1), axis=0)
    if whole == n:
        return blocks
    rest = reduce(x[whole:, :], axis=0)
    if reduce is xp.mean:
        return blocks * (whole / n) + rest * ((n - whole) / n)
    return blocks + rest
