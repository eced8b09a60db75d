"""Rows of features: images as rows of pixels and back, and the sum of many rows."""

from xpnn.backend import Array, Shape, library_of, namespace, written
from xpnn.kernels import fast_path


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


def sum_rows(x: Array, out: Array | None = None) -> Array:
    """Return the sum (D,) of rows (N, D); in `out` where it is given."""
    return (fast_path("layers.rows.add_rows", library_of(x)) or add_rows)(x, out)


def add_rows(x: Array, out: Array | None = None) -> Array:
    """The definition of `sum_rows`: where rows are many, first in blocks, then over these.

    NumPy adds rows one by one: over the pixels of a batch, float32 would lose two digits.
    """
    xp, (n, d) = namespace(x), x.shape
    whole = n - n % BLOCK
    if n < 4 * BLOCK:
        sums = xp.sum(x, axis=0)
    else:
        sums = xp.sum(xp.sum(xp.reshape(x[:whole, :], (whole // BLOCK, BLOCK, d)), axis=1), axis=0)
        if whole < n:
            sums = sums + xp.sum(x[whole:, :], axis=0)
    return written(sums, out)
