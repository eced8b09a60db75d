"""Convolution on NumPy: one matrix product for each row of the output, a few images at a time.

The pixels under a window lie KH KW C numbers apart from those of the next, most of them the same. Written out as a
matrix they are copied KH KW times. Here only the pixels of a window's row are written side by side, for every place
that the window takes in a row, and these strips above one another:

    strips[n, x, y] = padded[n, y, s x : s x + KW, :]        numbers (KW, C) for each place x and each row y

Then a window is KH strips on end, and the windows of one row of the output are the rows of a matrix that lies in the
strips already, each beginning at its place in the row. So pixels are copied KW times, not KH KW times.

Images are handled as (N, H, W, C), so that the numbers of a strip lie side by side; results come back as (N, C, H, W)
views of that. A chunk is as many images as have strips, or results, of about `STRIPS` bytes, one at least, or fewer,
where that makes a product `SMALL`.

Source: Cho and Brand, "MEC: Memory-efficient convolution for deep neural networks", ICML 2017.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpnn.backend import written
from xpnn.kernels import kernel
from xpnn.kernels.numpy import winograd
from xpnn.kernels.numpy.blocks import evenly, split
from xpnn.kernels.numpy.products import WORTH_A_THREAD
from xpnn.kernels.numpy.workspace import workspace
from xpnn.threads import share
from xpnn.windows import Pair, Window

STRIPS = 2 * 2**20  # bytes, for each thread
SUMS = 2**20  # bytes, of products that are yet to be added up
SMALL = 10**6  # multiplications: OpenBLAS with AVX-512 does not pack the matrices of a product of so many or fewer
ROWS = 96  # that a small product has at least: with fewer, more calls cost more than that saves
FEW_IMAGES = 2  # of scores as they are asked for one by one
ONE_PIXEL = Window((1, 1))


@kernel("layers.convolution.correlate", "numpy")
def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int) -> np.ndarray:
    n, f, (height, width) = x.shape[0], w.shape[0], window.counts(x.shape[2:])
    if 0 < n <= FEW_IMAGES and height * width < f:  # filters in another order would cost more than their products
        return _correlate_few(x, w, b, window, groups)
    if winograd.suits(window, x.shape[1], f, groups, (height, width), x.dtype, w.dtype):
        return winograd.correlate(x, w, b, window)
    filters, dtype = _matrices(w, groups), np.result_type(x, w)
    out = np.empty((n, height, width, groups, f // groups), dtype=dtype if b is None else np.result_type(dtype, b))
    # One row's worth, since adding long runs of numbers is faster than adding many short ones.
    bias = None if b is None else np.tile(b, width).reshape(width, groups, -1)

    def fill(images: slice) -> None:
        if window == ONE_PIXEL and groups == 1:  # the images are the matrix
            np.matmul(_rows(x[images]), filters[0], out=out[images].reshape(-1, f))
            if bias is not None:
                out[images] += bias
            return
        for chunk, windows in _chunks(x, images, window, groups, f):
            products = workspace("products", (*windows.shape[:3], f // groups), dtype)
            by_row = np.matmul(windows, filters[:, np.newaxis], out=products)
            by_image = by_row.reshape(groups, height, -1, width, f // groups).transpose(2, 1, 3, 0, 4)
            if bias is None:
                out[chunk] = by_image
            else:
                np.add(by_image, bias, out=out[chunk])

    share(fill, n, _least(w.shape, height * width))
    return out.reshape(n, height, width, f).transpose(0, 3, 1, 2)


def _correlate_few(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int) -> np.ndarray:
    """The filters as they lie in memory, times every window as a column."""
    (n, _, height, width), f, counts, (ph, pw) = x.shape, len(w), window.counts(x.shape[2:]), window.pad
    padded = np.zeros((*x.shape[:2], *window.padded((height, width))), x.dtype)
    padded[:, :, ph : ph + height, pw : pw + width] = x
    taps = np.stack([padded[:, :, rows, cols] for rows, cols in window.slices(counts)], axis=2)
    filters = w.reshape(groups, f // groups, -1)
    out = np.matmul(filters, taps.reshape(n, groups, filters.shape[2], -1)).reshape(n, f, *counts)
    return out if b is None else out + b.reshape(f, 1, 1)


@kernel("layers.convolution.correlate_filter_grad", "numpy")
def correlate_filter_grad(
    dout: np.ndarray, x: np.ndarray, window: Window, groups: int, out: np.ndarray | None = None
) -> np.ndarray:
    return written(_filter_grad(dout, x, window, groups), out)


def _filter_grad(dout: np.ndarray, x: np.ndarray, window: Window, groups: int) -> np.ndarray:
    (_, f, height, width), c, (kh, kw) = dout.shape, x.shape[1] // groups, window.size
    if winograd.suits(window, c, f, groups, (height, width), dout.dtype, x.dtype):
        return winograd.correlate_filter_grad(dout, x, window)

    def sums(images: slice) -> np.ndarray:
        if window == ONE_PIXEL and groups == 1:
            return np.matmul(_rows(x[images]).T, _rows(dout[images]))[np.newaxis]
        dw = np.zeros((groups, kh * kw * c, f // groups), dtype=np.result_type(dout, x))
        for chunk, windows in _chunks(x, images, window, groups, f):
            by_image = dout[chunk].reshape(-1, groups, f // groups, height, width)
            by_row = workspace("douts", (groups, height, windows.shape[2], f // groups), dout.dtype)
            by_row.reshape(groups, height, -1, width, f // groups)[...] = by_image.transpose(1, 3, 0, 4, 2)
            for part in split(slice(0, height), SUMS // max(dw.nbytes, 1)):
                products = workspace("products", (groups, part.stop - part.start, *dw.shape[1:]), dw.dtype)
                np.matmul(windows[:, part].swapaxes(2, 3), by_row[:, part], out=products)
                if products.shape[1] == 1:
                    dw += products[:, 0]
                else:
                    dw += np.add.reduce(products, axis=1, out=workspace("sum", dw.shape, dw.dtype))
        return dw

    dw, *others = share(sums, len(x), _least((f, c, kh, kw), height * width))
    for other in others:
        dw += other
    return dw.reshape(groups, kh, kw, c, f // groups).transpose(0, 4, 3, 1, 2).reshape(f, c, kh, kw)


@kernel("layers.convolution.correlate_input_grad", "numpy")
def correlate_input_grad(dout: np.ndarray, w: np.ndarray, image: Pair, window: Window, groups: int) -> np.ndarray:
    (f, c, kh, kw), (eh, ew), (ph, pw) = w.shape, window.extent, window.pad
    turns_cheaply = f // groups <= 2 * c or winograd.suits(window, f, c, groups, image, dout.dtype, w.dtype)
    if window.stride != (1, 1) or ph >= eh or pw >= ew or not turns_cheaply:
        return _scatter(dout, w, image, window, groups)
    # A pixel's gradient is a sum over the windows that met it: a correlation with the filters turned round.
    turned = w.reshape(groups, f // groups, c, kh, kw)[..., ::-1, ::-1].swapaxes(1, 2)
    around = window._replace(pad=(eh - 1 - ph, ew - 1 - pw))
    dx = correlate(dout, turned.reshape(groups * c, f // groups, kh, kw), None, around, groups)
    return dx.astype(dout.dtype, copy=False)


def _scatter(dout: np.ndarray, w: np.ndarray, image: Pair, window: Window, groups: int) -> np.ndarray:
    """The gradients of all windows, each added where its pixels were taken from."""
    (n, f, height, width), (_, c, kh, kw), (ph, pw) = dout.shape, w.shape, window.pad
    filters, dtype = _matrices(w, groups), np.result_type(dout, w)
    dx = np.empty((n, *image, groups * c), dtype=dout.dtype)
    # Windows that many columns apart have no pixel in common, so they can be added at one go.
    apart = (window.extent[1] - 1) // window.stride[1] + 1

    def fill(images: slice) -> None:
        for chunk in _chunks_of(images, height * width * kh * kw * c, dtype):
            count, rows = chunk.stop - chunk.start, _rows(dout[chunk]).reshape(-1, groups, f // groups)
            gradients = workspace("strips", (count, height, width, kh, kw, c), dtype)
            padded = workspace("padded", (count, *window.padded(image), groups * c), dtype)
            padded[...] = 0
            for g, matrix in enumerate(filters):
                np.matmul(rows[:, g], matrix.T, out=gradients.reshape(-1, kh * kw * c))
                into = _windows(padded[..., g * c : (g + 1) * c], window, (height, width))
                for u in range(kh):
                    for first in range(apart):
                        into[:, :, first::apart, u] += gradients[:, :, first::apart, u]
            dx[chunk] = padded[:, ph : ph + image[0], pw : pw + image[1]]

    share(fill, n, _least(w.shape, height * width))
    return dx.transpose(0, 3, 1, 2)


def _chunks(x: np.ndarray, images: slice, window: Window, groups: int, f: int) -> Iterator[tuple[slice, np.ndarray]]:
    """A few images at a time: which they are, and their windows as matrices (groups, H', n W', KH KW C / groups).

    f is how many numbers there will be for each window.
    """
    (_, channels, height, width), (ph, pw), (kh, kw) = x.shape, window.pad, window.size
    (sh, sw), (dh, dw), (rows, places) = window.stride, window.dilation, window.counts((height, width))
    # Windows above one another share their strips, unless there are rows between the strips of a window.
    stack, step = ((1, (rows - 1) * sh + kh), sh) if dh == 1 and sh <= kh else ((rows, kh), kh)
    c = channels // groups
    numbers = places * max(stack[0] * stack[1] * kw * channels, rows * f)
    small = SMALL // max(places * kh * kw * c * (f // groups), 1)
    for chunk in _chunks_of(images, numbers, x.dtype, small if small * places >= ROWS else None):
        count = chunk.stop - chunk.start
        padded = workspace("padded", (count, *window.padded((height, width)), groups, c), x.dtype)
        padded[...] = 0
        inside = padded[:, ph : ph + height, pw : pw + width]
        inside[...] = x[chunk].transpose(0, 2, 3, 1).reshape(inside.shape)

        sn, sy, sx, sg, sc = padded.strides
        strips = workspace("strips", (groups, count, places, *stack, kw, c), x.dtype)
        strips[...] = as_strided(padded, strips.shape, (sg, sn, sw * sx, sh * sy, dh * sy, dw * sx, sc))

        sg, _, place, _, strip, _, sc = strips.strides
        shape = (groups, rows, count * places, kh * kw * c)
        yield chunk, as_strided(strips, shape, (sg, step * strip, place, sc), writeable=False)


def _windows(padded: np.ndarray, window: Window, counts: Pair) -> np.ndarray:
    """A view of every window: (N, H', W', KH, KW, C)."""
    (sn, sy, sx, sc), (sh, sw), (dh, dw) = padded.strides, window.stride, window.dilation
    shape = (padded.shape[0], *counts, *window.size, padded.shape[3])
    return as_strided(padded, shape, (sn, sh * sy, sw * sx, dh * sy, dw * sx, sc))


def _matrices(w: np.ndarray, groups: int) -> np.ndarray:
    """The filters as a matrix (KH KW C, F / groups) for each group."""
    f, c, kh, kw = w.shape
    matrices = np.ascontiguousarray(w.reshape(groups, f // groups, c, kh, kw).transpose(0, 3, 4, 2, 1))
    return matrices.reshape(groups, kh * kw * c, f // groups)


def _least(filters: tuple[int, ...], places: int) -> int:
    """How many images are worth a thread."""
    return WORTH_A_THREAD // max(math.prod(filters) * places, 1)


def _rows(images: np.ndarray) -> np.ndarray:
    """(N H W, C): a view where the memory is in that order."""
    return images.transpose(0, 2, 3, 1).reshape(-1, images.shape[1])


def _chunks_of(images: slice, numbers: int, dtype: np.dtype, most: int | None = None) -> Iterator[slice]:
    """A few images at a time, where so many numbers of the dtype are written out for each; no more than `most`."""
    few = STRIPS // max(numbers * dtype.itemsize, 1)
    return evenly(images, few if most is None else min(few, most))
