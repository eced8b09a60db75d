"""The loops of `compiled` without numba: NumPy's operations in blocks that stay in a core's cache."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn.kernels.numpy.blocks import split
from xpnn.kernels.numpy.rows import block_sum
from xpnn.kernels.numpy.special import fill_erf
from xpnn.kernels.numpy.workspace import workspace
from xpnn.special import GELU_FAR
from xpnn.windows import Pair, Window

BLOCK = 2**17  # numbers: with fewer, calling NumPy costs more than a nearer cache saves
IMAGES = 2**18  # numbers of images


def by_blocks(loop: Callable[..., None]) -> Callable[..., None]:
    """Call the loop with blocks of its arrays, then its numbers, then two blocks of memory for what lies between."""

    def call(w: np.ndarray, *args: Any) -> None:
        arrays = [w, *(a for a in args if isinstance(a, np.ndarray))]
        numbers = args[len(arrays) - 1 :]
        for block in split(slice(0, w.size), BLOCK):
            parts = [array[block] for array in arrays]
            between = (workspace(name, parts[0].shape, w.dtype) for name in ("between", "between too"))
            loop(*parts, *numbers, *between)

    return call


@by_blocks
def sgd(w, dw, lr, t, _):
    w -= np.multiply(dw, lr, out=t)


@by_blocks
def sgd_momentum(w, dw, velocity, lr, mu, t, _):
    velocity *= mu
    velocity -= np.multiply(dw, lr, out=t)
    w += velocity


@by_blocks
def sgd_nesterov_momentum(w, dw, velocity, lr, mu, t, before):
    before[...] = velocity
    velocity *= mu
    velocity -= np.multiply(dw, lr, out=t)
    w += velocity
    np.subtract(velocity, before, out=t)
    t *= mu
    w += t


@by_blocks
def nesterov(w, dw, velocity, lr, mu, decay, g, t):
    np.multiply(w, decay, out=g)
    g += dw
    velocity *= mu
    velocity += g
    g += np.multiply(velocity, mu, out=t)
    g *= lr
    w -= g


@by_blocks
def rmsprop(w, dw, a, lr, decay, rest, eps, t, u):
    _blend(a, decay, np.multiply(dw, dw, out=t), rest, t)
    np.sqrt(a, out=t)
    t += eps
    np.multiply(dw, lr, out=u)
    w -= np.divide(u, t, out=u)


@by_blocks
def adam(w, dw, v, a, kept, step, b1, rest1, b2, rest2, eps, t, u):
    _blend(v, b1, dw, rest1, t)
    _blend(a, b2, np.multiply(dw, dw, out=t), rest2, t)
    np.sqrt(a, out=t)
    t += eps
    np.multiply(v, step, out=u)
    u /= t
    if kept != 1:
        w *= kept
    w -= u


@by_blocks
def lion(w, dw, v, kept, lr, b1, rest1, b2, rest2, t, u):
    np.multiply(v, b1, out=t)
    t += np.multiply(dw, rest1, out=u)
    np.sign(t, out=t)
    _blend(v, b2, dw, rest2, u)
    if kept != 1:
        w *= kept
    t *= lr
    w -= t


def where_positive(dout, out, dx):
    _keep(dout, out > 0, out=dx)


def gelu(x: np.ndarray, out: np.ndarray, slope: np.ndarray) -> None:
    np.maximum(x, -GELU_FAR, out=out)
    x = np.minimum(out, GELU_FAR)
    np.multiply(x, math.sqrt(0.5), out=slope)
    fill_erf(slope, slope)
    slope *= 0.5
    slope += 0.5
    out *= slope
    density = x * x
    density *= -0.5
    np.exp(density, out=density)
    density *= 1.0 / math.sqrt(2.0 * math.pi)
    density *= x
    slope += density


def block_moments(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each column's mean, as it is rounded, and the sums of what is left without it and of that squared."""
    mean = block_sum(block) / len(block)
    centered = block - mean
    offsets = block_sum(centered)
    centered *= centered
    return mean, offsets, block_sum(centered)


def normalize(x: np.ndarray, out: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> None:
    np.subtract(x, mean, out=out)
    out *= scale
    out += beta


def gradient_sums(dout: np.ndarray, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    products = x - mean
    products *= dout
    return block_sum(dout), block_sum(products)


def input_gradient(
    dout: np.ndarray,
    x: np.ndarray,
    dx: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    slope: np.ndarray,
) -> None:
    centered = x - mean
    centered *= slope
    np.subtract(dout, shift, out=dx)
    dx -= centered
    dx *= scale


def normalize_relu(x: np.ndarray, out: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> None:
    normalize(x, out, mean, scale, beta)
    np.maximum(out, 0, out=out)


def gradient_sums_relu(
    dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return gradient_sums(_where_passed(dout, x, mean, scale, beta), x, mean)


def input_gradient_relu(
    dout: np.ndarray,
    x: np.ndarray,
    dx: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    beta: np.ndarray,
    shift: np.ndarray,
    slope: np.ndarray,
) -> None:
    input_gradient(_where_passed(dout, x, mean, scale, beta), x, dx, mean, scale, shift, slope)


def _where_passed(dout: np.ndarray, x: np.ndarray, mean: np.ndarray, scale: np.ndarray, beta: np.ndarray) -> np.ndarray:
    out = x - mean
    out *= scale
    out += beta
    return np.where(out > 0, dout, dout.dtype.type(0))


def dropout_mask(
    seed: np.uint64,
    stream: np.uint64,
    counter: np.uint64,
    carry: np.uint64,
    dropped: np.uint64,
    kept: np.floating,
    mask: np.ndarray,
) -> None:
    key, start = np.array([seed, stream]), np.array([counter, carry, 0, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=start).random_raw((mask.size + 1) // 2)
    np.multiply(words.view(np.uint32)[: mask.size] >= dropped, kept, out=mask)


def window_max(x: np.ndarray, window: Window, out: np.ndarray, place: np.ndarray) -> None:
    last = math.prod(window.size) - 1
    for images in split(slice(0, len(x)), IMAGES // max(x[:1].size, 1)):
        taps = [x[images, rows, cols] for rows, cols in window.slices(out.shape[1:3])]
        largest, where = out[images], place[images]
        largest[...] = taps[0]
        for tap in taps[1:]:
            np.maximum(largest, tap, out=largest)
        # The place of the first maximum is how many numbers before it are smaller.
        smaller, before = np.ones(largest.shape, dtype=bool), np.empty(largest.shape, dtype=bool)
        for tap in taps[:last]:
            np.logical_and(smaller, np.not_equal(tap, largest, out=before), out=smaller)
            np.add(where, smaller, out=where)
        if np.isnan(largest).any():  # NaN equals nothing, itself included
            for k in range(last, -1, -1):
                where[np.isnan(taps[k])] = k


def window_max_grad(dout: np.ndarray, place: np.ndarray, window: Window, dx: np.ndarray) -> None:
    apart = all(stride >= size for stride, size in zip(window.stride, window.size, strict=True))
    for images in split(slice(0, len(dout)), IMAGES // max(dout[:1].size, 1)):
        for k, (rows, cols) in enumerate(window.slices(dout.shape[1:3])):
            tap = dx[images, rows, cols]
            if apart:  # each number is in one window at most
                _keep(dout[images], place[images] == k, out=tap)
            else:
                tap += _keep(dout[images], place[images] == k)


def input_transform(x: np.ndarray, pad: Pair, tiles: np.ndarray) -> None:
    n, rows, cols, c = tiles.shape[2:]
    x = _padded(x, (n, 2 * rows + 2, 2 * cols + 2, c), pad)
    between = workspace("between", (4, *x.shape[:1], tiles.shape[3], *x.shape[2:]), x.dtype)
    for d, out in ((x, between), (between.transpose(1, 3, 0, 2, 4), tiles.transpose(1, 2, 4, 0, 3, 5))):
        d0, d1, d2, d3 = d[:, :-2:2], d[:, 1:-1:2], d[:, 2::2], d[:, 3::2]
        np.subtract(d0, d2, out=out[0])
        np.add(d1, d2, out=out[1])
        np.subtract(d2, d1, out=out[2])
        np.subtract(d1, d3, out=out[3])


def output_transform(products: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    between = workspace("between", (2, *products.shape[1:]), products.dtype)
    _two_outputs(products, between)
    for half, lines in zip(between, (out[:, ::2], out[:, 1::2]), strict=True):
        count, width = lines.shape[1:3]
        results = workspace("between too", (2, *half.shape[1:]), half.dtype)
        _two_outputs(half, results)
        for v in range(2):
            np.add(results[v, :, :count, : (width + 1 - v) // 2], bias, out=lines[:, :, v::2])


def gradient_transform(dout: np.ndarray, tiles: np.ndarray) -> None:
    n, rows, cols, f = tiles.shape[2:]
    dout = _padded(dout, (n, 2 * rows, 2 * cols, f), (0, 0))
    between = workspace("between", (4, *dout.shape[:1], tiles.shape[3], *dout.shape[2:]), dout.dtype)
    for d, out in ((dout, between), (between.transpose(1, 3, 0, 2, 4), tiles.transpose(1, 2, 4, 0, 3, 5))):
        d0, d1 = d[:, ::2], d[:, 1::2]
        out[0] = d0
        np.add(d0, d1, out=out[1])
        np.subtract(d0, d1, out=out[2])
        np.negative(d1, out=out[3])


def _padded(x: np.ndarray, shape: tuple[int, int, int, int], pad: Pair) -> np.ndarray:
    """Images (N, H, W, C) among zeros."""
    padded = workspace("padded", shape, x.dtype)
    (top, left), (height, width) = pad, x.shape[1:3]
    padded[:, top : top + height, left : left + width] = x
    padded[:, :top] = padded[:, top + height :] = 0
    padded[:, :, :left] = padded[:, :, left + width :] = 0
    return padded


def _two_outputs(p: np.ndarray, out: np.ndarray) -> None:
    np.add(p[1], p[2], out=out[0])
    out[0] += p[0]
    np.subtract(p[1], p[2], out=out[1])
    out[1] -= p[3]


def _blend(old: np.ndarray, kept: Any, new: np.ndarray, rest: Any, between: np.ndarray) -> None:
    """``old = kept old + rest new``, by way of `between`, which may be new itself."""
    old *= kept
    old += np.multiply(new, rest, out=between)


def _keep(values: np.ndarray, where: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return the values where a bool array says so, elsewhere zero: ``np.where(where, values, 0)``.

    All bits of a value or none, by a mask of ones or zeros, is several times faster than a choice by bool.
    """
    integer = np.dtype(f"i{values.dtype.itemsize}")
    mask = np.negative(where.view(np.int8)).astype(integer)
    bits = np.bitwise_and(values.view(integer), mask, out=mask if out is None else out.view(integer))
    return bits.view(values.dtype)
