"""Moving the pixels of image batches: padding, flipping, and another choice of rows and columns for each image."""

import math
from typing import Any

from xpnn.backend import Array, describe, dtype_name, is_array, is_real, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.layers.standardize import standardized
from xpnn.places import Chain, have_zeros, places_of, reflect

PADDINGS = ("reflect", "zero")


def check_images(where: str, x: Array) -> Any:
    """Return the namespace of a batch of images; raise where it is none.

    Raises
    ------
    TypeError
        When x is no array, or holds no real numbers.
    ValueError
        When it is not of shape (N, C, H, W).
    """
    if not is_array(x):
        raise TypeError(f"{where}: expected images x (N, C, H, W); received {describe(x)}")
    if not is_real(x):
        raise TypeError(f"{where}: expected images of real numbers; received {dtype_name(x.dtype)}")
    if x.ndim != 4:
        raise ValueError(f"{where}: expected images x (N, C, H, W); received shape {tuple(x.shape)}")
    return namespace(x)


def check_padding(where: str, mode: str, padding: int, height: int, width: int) -> None:
    """Raise ValueError where images are too small to be reflected so far."""
    if mode == "reflect" and padding >= min(height, width):
        raise ValueError(
            f"{where}: expected images of more than {padding} rows and columns to reflect; received {height} x {width}"
        )


def pad(x: Array, padding: int, mode: str = "reflect") -> Array:
    """Return images with `padding` more rows and columns at each edge.

    Parameters
    ----------
    x : array (N, C, H, W)
        Of any real dtype.
    padding : int
    mode : str
        ``"reflect"``: the image mirrored at its outermost pixels, which are not repeated; or ``"zero"``.

    Returns
    -------
    out : array (N, C, H + 2 padding, W + 2 padding)

    Raises
    ------
    ValueError
        When the image is too small to be reflected so far.
    """
    xp = check_images("pad", x)
    n, c, height, width = x.shape
    check_padding("pad", mode, padding, height, width)
    if mode == "zero":
        out = xp.zeros((n, c, height + 2 * padding, width + 2 * padding), dtype=x.dtype, device=x.device)
        out[:, :, padding : padding + height, padding : padding + width] = x
        return out
    for axis, size in ((2, height), (3, width)):
        indices = xp.arange(-padding, size + padding, dtype=xp.int64, device=x.device)
        x = xp.take(x, reflect(indices, size), axis=axis)
    return x


def mirror(x: Array) -> Array:
    """Return images with left and right exchanged."""
    return check_images("mirror", x).flip(x, axis=3)


def picked(x: Array, indices: Array | None = None, rows: Chain = (), columns: Chain = ()) -> Array:
    """Return some of the images, and of each other pixels: ``x[indices[n], c, rows[n, i], columns[n, j]]``.

    Parameters
    ----------
    x : array (M, C, H, W)
        Of any dtype. Without rows and columns, examples of any shape.
    indices : int64 array (N,), optional
        From 0 to M - 1, of which nothing is checked; by default all images, in their order.
    rows, columns : tuple of Shifted, Mirrored, or int64 array (N, H') or (N, W')
        Where they come from; of several, the first was done first. By default all, in their order.

    Returns
    -------
    out : array (N, C, H', W')
    """
    if not rows and not columns:
        return x if indices is None else (fast_path("data.images.taken", library_of(x)) or taken)(x, indices)
    return (fast_path("data.images.pick", library_of(x)) or pick)(x, indices, rows, columns)


def taken(x: Array, indices: Array) -> Array:
    """The definition of `picked` without rows and columns."""
    return namespace(x).take(x, indices, axis=0)


def pick(x: Array, indices: Array | None = None, rows: Chain = (), columns: Chain = ()) -> Array:
    """The definition of `picked`."""
    x = x if indices is None else namespace(x).take(x, indices, axis=0)
    of_rows, of_columns = places_of(rows, x.shape[2]), places_of(columns, x.shape[3])
    if of_rows is not None:
        x = pick_rows(_with_zeros(x, 2) if have_zeros(rows) else x, of_rows)
    if of_columns is not None:
        x = pick_columns(_with_zeros(x, 3) if have_zeros(columns) else x, of_columns)
    return x


def _with_zeros(x: Array, axis: int) -> Array:
    """Images with one more row, or column."""
    xp = namespace(x)
    shape = *x.shape[:axis], 1, *x.shape[axis + 1 :]
    return xp.concat((x, xp.zeros(shape, dtype=x.dtype, device=x.device)), axis=axis)


def pick_standardized(
    x: Array,
    mean: Array,
    std: Array,
    dtype: str,
    indices: Array | None = None,
    rows: Chain = (),
    columns: Chain = (),
) -> Array:
    """The definition of `picked` images, `standardized` by arrays of one shape, (1, 1, 1) or (C, 1, 1): in one pass."""
    return standardized(picked(x, indices, rows, columns), mean, std, dtype)


def pick_rows(x: Array, rows: Array) -> Array:
    """Return ``out[n, :, i, :] = x[n, :, rows[n, i], :]``: other rows for each image."""
    return _pick(x, rows, (0, 2, 1, 3), (0, 2, 1, 3))


def pick_columns(x: Array, columns: Array) -> Array:
    """Return ``out[n, :, :, i] = x[n, :, :, columns[n, i]]``: other columns for each image."""
    return _pick(x, columns, (0, 3, 1, 2), (0, 2, 3, 1))


def _pick(x: Array, indices: Array, there: tuple[int, ...], back: tuple[int, ...]) -> Array:
    """One gather of whole rows or columns: many times quicker than one of pixels, and quicker than masks."""
    xp = namespace(x)
    x = xp.permute_dims(x, there)
    n, size, *line = x.shape
    count = indices.shape[1]
    first = xp.arange(n, dtype=xp.int64, device=x.device)[:, None] * size
    lines = xp.take(xp.reshape(x, (n * size, math.prod(line))), xp.reshape(first + indices, (-1,)), axis=0)
    return xp.permute_dims(xp.reshape(lines, (n, count, *line)), back)
