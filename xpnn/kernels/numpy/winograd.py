"""Convolution on NumPy with windows of 3 x 3 and a stride of 1, by fewer multiplications.

Two outputs side by side share pixels: of the pixels d0 d1 d2 d3 and the taps g0 g1 g2 they are

    out0 = (d0 - d2) g0 + (d1 + d2) (g0 + g1 + g2) / 2 + (d2 - d1) (g0 - g1 + g2) / 2
    out1 =                (d1 + d2) (g0 + g1 + g2) / 2 - (d2 - d1) (g0 - g1 + g2) / 2 - (d1 - d3) g2

four products instead of six. Along both axes, a tile of 4 x 4 pixels gives 2 x 2 outputs by 16 products for each
channel and filter instead of 36. With matrices for these sums:

    out = A^T [(G g G^T) * (B^T d B)] A        the filter's, the input's and the output's transform
    dg  = G^T [(A dout A^T) * (B^T d B)] G     the same read backwards

For each of the 16 the sum over channels is a matrix product, of all tiles (T, C) and all filters (C, F). A pixel that
is infinite, or within a factor of 4 of it, makes NaN of outputs of its tile where the definition need not.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

from collections.abc import Iterator

import numpy as np

from xpnn.kernels.numpy.blocks import evenly
from xpnn.kernels.numpy.loops import COMPILED, loops
from xpnn.kernels.numpy.products import WORTH_A_THREAD
from xpnn.kernels.numpy.workspace import workspace
from xpnn.threads import share
from xpnn.windows import Pair, Window

TILES = 128  # at a time: rows enough for a matrix product, few enough for a core's cache
MOST_TILES = 1024  # of one image: their transforms are four times as large as the image
LEAST_PRODUCTS = 12 if COMPILED else 40  # for each number that is transformed


def suits(window: Window, channels: int, filters: int, groups: int, counts: Pair, *dtypes: np.dtype) -> bool:
    """Whether a convolution of arrays of these dtypes, with so many outputs, can be done so, and is faster for it."""
    if window._replace(pad=(0, 0)) != Window((3, 3)) or groups != 1:
        return False
    if len(set(dtypes)) > 1 or dtypes[0].itemsize < 4:  # the sums before the products need the accuracy of the result
        return False
    rows, cols = _tile_counts(counts)
    # Images of an odd size leave part of their last tiles unused.
    is_fewer = 16 * rows * cols < 0.75 * 9 * counts[0] * counts[1]
    return is_fewer and rows * cols <= MOST_TILES and channels * filters >= LEAST_PRODUCTS * (channels + filters)


def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window) -> np.ndarray:
    (n, _), f, counts = x.shape[:2], len(w), window.counts(x.shape[2:])
    filters = _filter_transform(w)
    dtype = np.result_type(x, filters)
    bias = np.zeros(f, dtype) if b is None else np.ascontiguousarray(b)
    out = np.empty((n, *counts, f), np.result_type(dtype, bias))

    def fill(images: slice) -> None:
        for chunk, tiles in _tiles(x, images, window):
            products = workspace("products", (*tiles.shape[:-1], f), dtype)
            np.matmul(_matrices(tiles), filters, out=_matrices(products))
            loops.output_transform(products, bias, out[chunk])

    share(fill, n, _least(w.shape[0] * w.shape[1], counts))
    return out.transpose(0, 3, 1, 2)


def correlate_filter_grad(dout: np.ndarray, x: np.ndarray, window: Window) -> np.ndarray:
    (_, f, height, width), c = dout.shape, x.shape[1]
    shape, dtype = (16, c, f), np.result_type(dout, x)

    def sums(images: slice) -> np.ndarray:
        total, into = np.zeros(shape, dtype), np.empty(shape, dtype)
        for chunk, tiles in _tiles(x, images, window):
            douts = workspace("products", (*tiles.shape[:-1], f), dout.dtype)
            loops.gradient_transform(_pixels(dout[chunk]), douts)
            first = chunk.start == images.start
            product = np.matmul(_matrices(tiles).swapaxes(1, 2), _matrices(douts), out=total if first else into)
            if not first:
                total += product
        return total

    total, *others = share(sums, len(x), _least(c * f, (height, width)))
    for other in others:
        total += other
    return _filter_transform_grad(total.reshape(4, 4, c, f))


def _tiles(x: np.ndarray, images: slice, window: Window) -> Iterator[tuple[slice, np.ndarray]]:
    """A few images at a time: which they are, and their tiles' transforms (4, 4, n, rows, columns, C)."""
    rows, cols = _tile_counts(window.counts(x.shape[2:]))
    for chunk in evenly(images, TILES // (rows * cols)):
        tiles = workspace("tiles", (4, 4, chunk.stop - chunk.start, rows, cols, x.shape[1]), x.dtype)
        loops.input_transform(_pixels(x[chunk]), window.pad, tiles)
        yield chunk, tiles


def _tile_counts(counts: Pair) -> Pair:
    return (counts[0] + 1) // 2, (counts[1] + 1) // 2


def _pixels(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C)."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _matrices(transforms: np.ndarray) -> np.ndarray:
    return transforms.reshape(16, -1, transforms.shape[-1])


def _least(filters: int, counts: Pair) -> int:
    """How many images are worth a thread."""
    rows, cols = _tile_counts(counts)
    return WORTH_A_THREAD // max(16 * filters * rows * cols, 1)


def _filter_transform(w: np.ndarray) -> np.ndarray:
    """``G g G^T`` of filters (F, C, 3, 3): (16, C, F)."""
    f, c = w.shape[:2]
    out = np.empty((4, 4, c, f), w.dtype)

    def fill(channels: slice) -> None:
        taps = np.ascontiguousarray(w[:, channels].transpose(3, 2, 1, 0))
        columns = np.empty((4, *taps.shape[1:]), w.dtype)
        for g, into in ((taps, columns), (columns.swapaxes(0, 1), out[:, :, channels])):
            ends, middle = 0.5 * (g[0] + g[2]), 0.5 * g[1]
            into[0], into[3] = g[0], g[2]
            np.add(ends, middle, out=into[1])
            np.subtract(ends, middle, out=into[2])

    share(fill, c, WORTH_A_THREAD // max(out[:, :, :1].size, 1), along=True)
    return out.reshape(16, c, f)


def _filter_transform_grad(u: np.ndarray) -> np.ndarray:
    """``G^T u G``: (F, C, 3, 3)."""
    c, f = u.shape[2:]
    out = np.empty((f, c, 3, 3), u.dtype)

    def fill(channels: slice) -> None:
        products = u[:, :, channels]
        rows = np.empty((3, *products.shape[1:]), u.dtype)
        for p, into in ((products, rows), (rows.swapaxes(0, 1), out[:, channels].transpose(3, 2, 1, 0))):
            half = 0.5 * (p[1] + p[2])
            np.add(p[0], half, out=into[0])
            np.multiply(p[1] - p[2], 0.5, out=into[1])
            np.add(half, p[3], out=into[2])

    share(fill, c, WORTH_A_THREAD // max(u[:, :, :1].size, 1), along=True)
    return out
