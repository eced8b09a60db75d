"""Convolution on NumPy: a few images at a time, their windows as rows of a matrix that stays in the cache.

Images are handled as (N, H, W, C), so that the numbers of a window's row lie side by side; results come back as
(N, C, H, W) views of that. A chunk is as many images as have rows of `COLUMNS` bytes, one at least.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpnn.kernels import kernel
from xpnn.windows import Pair, Window

COLUMNS = 4 * 2**20  # bytes
ONE_PIXEL = Window((1, 1))


@kernel("layers.convolution.correlate", "numpy")
def correlate(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, window: Window, groups: int) -> np.ndarray:
    n, f, (height, width) = x.shape[0], w.shape[0], window.counts(x.shape[2:])
    filters = _matrices(w, groups)
    out = np.empty((n, height * width, f), dtype=np.result_type(x, w))
    for images, columns in _chunks(x, window, groups):
        rows = out[images].reshape(-1, f)
        for part, matrix, taps in zip(np.split(rows, groups, axis=1), filters, columns, strict=True):
            np.matmul(taps, matrix, out=part)
        if b is not None:
            rows += b
    return out.reshape(n, height, width, f).transpose(0, 3, 1, 2)


@kernel("layers.convolution.correlate_filter_grad", "numpy")
def correlate_filter_grad(dout: np.ndarray, x: np.ndarray, window: Window, groups: int) -> np.ndarray:
    (f, c), (kh, kw) = (dout.shape[1], x.shape[1] // groups), window.size
    dw = np.zeros((groups, kh * kw * c, f // groups), dtype=np.result_type(dout, x))
    part = np.empty_like(dw[0])
    for images, columns in _chunks(x, window, groups):
        rows = _rows(dout[images])
        for g, (taps, douts) in enumerate(zip(columns, np.split(rows, groups, axis=1), strict=True)):
            dw[g] += np.matmul(taps.T, douts, out=part)
    return dw.reshape(groups, kh, kw, c, f // groups).transpose(0, 4, 3, 1, 2).reshape(f, c, kh, kw)


@kernel("layers.convolution.correlate_input_grad", "numpy")
def correlate_input_grad(dout: np.ndarray, w: np.ndarray, image: Pair, window: Window, groups: int) -> np.ndarray:
    (n, _, height, width), (_, c, kh, kw), (ph, pw) = dout.shape, w.shape, window.pad
    filters, dtype = _matrices(w, groups), np.result_type(dout, w)
    dx = np.empty((n, *image, groups * c), dtype=dtype)
    length = _chunk_length(height * width * kh * kw * c, dtype)
    padded = np.empty((min(length, n), *window.padded(image), groups * c), dtype=dtype)
    dtaps = np.empty((min(length, n) * height * width, kh * kw * c), dtype=dtype)
    # Windows that many columns apart have no pixel in common, so they can be added at one go.
    apart = (window.extent[1] - 1) // window.stride[1] + 1
    for start in range(0, n, length):
        images = slice(start, min(start + length, n))
        rows = _rows(dout[images])
        chunk, taps = padded[: images.stop - start], dtaps[: rows.shape[0]]
        chunk[...] = 0
        for g, (douts, matrix) in enumerate(zip(np.split(rows, groups, axis=1), filters, strict=True)):
            np.matmul(douts, matrix.T, out=taps)
            into = _windows(chunk[..., g * c : (g + 1) * c], window, (height, width), writeable=True)
            gradients = taps.reshape(-1, height, width, kh, kw, c)
            for u in range(kh):
                for first in range(apart):
                    into[:, :, first::apart, u] += gradients[:, :, first::apart, u]
        dx[images] = chunk[:, ph : ph + image[0], pw : pw + image[1]]
    return dx.transpose(0, 3, 1, 2)


def _chunks(x: np.ndarray, window: Window, groups: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """A few images at a time: which they are, and for each group the matrix whose rows are their windows."""
    (n, channels, height, width), (ph, pw), (kh, kw) = x.shape, window.pad, window.size
    if window == ONE_PIXEL and groups == 1:  # the images are the matrix
        yield slice(0, n), [_rows(x)]
        return
    c, counts = channels // groups, window.counts(x.shape[2:])
    length = _chunk_length(counts[0] * counts[1] * kh * kw * channels, x.dtype)
    padded = np.zeros((min(length, n), *window.padded((height, width)), channels), dtype=x.dtype)
    columns = np.empty((groups, min(length, n), *counts, kh, kw, c), dtype=x.dtype)
    for start in range(0, n, length):
        images = slice(start, min(start + length, n))
        chunk = padded[: images.stop - start]
        chunk[:, ph : ph + height, pw : pw + width] = x[images].transpose(0, 2, 3, 1)
        for g in range(groups):
            columns[g, : len(chunk)] = _windows(chunk[..., g * c : (g + 1) * c], window, counts)
        yield images, [taps[: len(chunk)].reshape(-1, kh * kw * c) for taps in columns]


def _windows(padded: np.ndarray, window: Window, counts: Pair, writeable: bool = False) -> np.ndarray:
    """A view of every window: (N, H', W', KH, KW, C)."""
    (sn, sy, sx, sc), (sh, sw), (dh, dw) = padded.strides, window.stride, window.dilation
    shape = (padded.shape[0], *counts, *window.size, padded.shape[3])
    return as_strided(padded, shape, (sn, sh * sy, sw * sx, dh * sy, dw * sx, sc), writeable=writeable)


def _matrices(w: np.ndarray, groups: int) -> np.ndarray:
    """The filters as a matrix (KH KW C, F / groups) for each group."""
    f, c, kh, kw = w.shape
    matrices = np.ascontiguousarray(w.reshape(groups, f // groups, c, kh, kw).transpose(0, 3, 4, 2, 1))
    return matrices.reshape(groups, kh * kw * c, f // groups)


def _rows(images: np.ndarray) -> np.ndarray:
    """(N H W, C): a view where the memory is in that order."""
    return images.transpose(0, 2, 3, 1).reshape(-1, images.shape[1])


def _chunk_length(numbers: int, dtype: np.dtype) -> int:
    return max(COLUMNS // max(numbers * dtype.itemsize, 1), 1)
