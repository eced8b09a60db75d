"""Loops that numba compiles when they are first called, and keeps on disk.

Each runs on one core. An update rule's scalars have the dtype of its arrays.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xpnn.kernels.numpy import blockwise
from xpnn.windows import Window

# Of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
PHILOX_M0, PHILOX_M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
PHILOX_W0, PHILOX_W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


def compiled(loop: Callable[..., Any], fuse: bool = True) -> Any:
    # A division by zero is infinite, as in NumPy. Multiplying and adding may be fused, rounded once.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"} if fuse else False}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # there is no folder that numba may write to
        return numba.njit(**options)(loop)


as_numpy_rounds = partial(compiled, fuse=False)


def or_blockwise(loop: Any) -> Any:
    """Leave arrays that numba does not know, of float16 or of another byte order, to NumPy's loop of the same name."""
    other = getattr(blockwise, loop.__name__)

    def call(*args: Any) -> Any:
        for arg in args:
            if isinstance(arg, np.ndarray) and (arg.dtype.char == "e" or not arg.dtype.isnative):
                return other(*args)
        return loop(*args)

    return call


@or_blockwise
@compiled
def sgd(w, dw, lr):
    for i in range(w.size):
        w[i] -= lr * dw[i]


@or_blockwise
@compiled
def sgd_momentum(w, dw, velocity, lr, mu):
    for i in range(w.size):
        velocity[i] = mu * velocity[i] - lr * dw[i]
        w[i] += velocity[i]


@or_blockwise
@compiled
def sgd_nesterov_momentum(w, dw, velocity, lr, mu):
    for i in range(w.size):
        before = velocity[i]
        velocity[i] = mu * before - lr * dw[i]
        w[i] += velocity[i] + mu * (velocity[i] - before)


@or_blockwise
@compiled
def nesterov(w, dw, velocity, lr, mu, decay):
    for i in range(w.size):
        g = dw[i] + decay * w[i]
        velocity[i] = mu * velocity[i] + g
        w[i] -= lr * (g + mu * velocity[i])


@or_blockwise
@compiled
def rmsprop(w, dw, a, lr, decay, rest, eps):
    for i in range(w.size):
        a[i] = decay * a[i] + rest * (dw[i] * dw[i])
        w[i] -= lr * dw[i] / (math.sqrt(a[i]) + eps)


@or_blockwise
@compiled
def adam(w, dw, v, a, kept, step, b1, rest1, b2, rest2, eps):
    for i in range(w.size):
        v[i] = b1 * v[i] + rest1 * dw[i]
        a[i] = b2 * a[i] + rest2 * (dw[i] * dw[i])
        w[i] = kept * w[i] - step * v[i] / (math.sqrt(a[i]) + eps)


@or_blockwise
@compiled
def lion(w, dw, v, kept, lr, b1, rest1, b2, rest2):
    for i in range(w.size):
        direction = np.sign(b1 * v[i] + rest1 * dw[i])
        v[i] = b2 * v[i] + rest2 * dw[i]
        w[i] = kept * w[i] - lr * direction


@or_blockwise
@compiled
def where_positive(dout, out, dx):
    for i in range(dx.size):
        if out[i] > 0:
            dx[i] = dout[i]
        else:
            dx[i] = 0


# 0.5 erfc(x / sqrt(2)) = exp(-x² / 2) t p(t) with t = 1 / (1 + 0.21 x), where p is the polynomial of degree 8 with the
# least greatest error for x up to 13.2, relative 1.2e-8; found by Lawson's iteration on values of mpmath. p0 to p8.
_TAIL = np.array([0.083705229, 0.085167805, 0.068536637, 0.12728452, -0.099319012,
                  0.35691744, -0.33663473, 0.28661024, -0.072268129], np.float32)  # fmt: skip
_TAIL_END = np.float32(13.0)  # the tail is 0 to the last bit of a sum with 1, and exp(-x² / 2) is a normal number


def gelu(x: np.ndarray, out: np.ndarray, slope: np.ndarray) -> None:
    (_gelu if x.dtype == np.float32 else blockwise.gelu)(x, out, slope)


@compiled
def _gelu(x, out, slope):
    """GELU and its derivative in float32, by one exponential and one division."""
    one = np.float32(1.0)
    for i in range(x.size):
        size = min(abs(x[i]), _TAIL_END)
        exp = _exp(np.float32(-0.5) * size * size) if size < _TAIL_END else np.float32(0.0)
        t = one / (one + np.float32(0.21) * size)
        tail = _TAIL[8]
        for k in range(7, -1, -1):
            tail = tail * t + _TAIL[k]
        tail *= t * exp
        density = exp * np.float32(1.0 / math.sqrt(2.0 * math.pi))
        if x[i] >= 0:
            out[i], slope[i] = x[i] * (one - tail), (one - tail) + size * density
        else:
            out[i], slope[i] = -size * tail, tail - size * density


@compiled
def _exp(x):
    """``exp(x)`` of a normal float32 result: 2^n times a polynomial. Source: Moshier, Cephes library, expf.c."""
    n = np.floor(np.float32(1.0 / math.log(2.0)) * x + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log(2), in two parts
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    two_to_n = np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return (p * r * r + r + np.float32(1.0)) * two_to_n


@or_blockwise
@compiled
def block_moments(block):
    n, d = block.shape
    mean, offsets, squares = np.zeros(d, block.dtype), np.zeros(d, block.dtype), np.zeros(d, block.dtype)
    for i in range(n):
        for j in range(d):
            mean[j] += block[i, j]
    mean /= block.dtype.type(n)
    for i in range(n):
        for j in range(d):
            centered = block[i, j] - mean[j]
            offsets[j] += centered
            squares[j] += centered * centered
    return mean, offsets, squares


@or_blockwise
@as_numpy_rounds
def normalize(x, out, mean, scale, beta):
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            out[i, j] = (x[i, j] - mean[j]) * scale[j] + beta[j]


@or_blockwise
@compiled
def gradient_sums(dout, x, mean):
    n, d = x.shape
    sums, products = np.zeros(d, dout.dtype), np.zeros(d, (dout[:0] * x[:0]).dtype)
    for i in range(n):
        for j in range(d):
            sums[j] += dout[i, j]
            products[j] += dout[i, j] * (x[i, j] - mean[j])
    return sums, products


@or_blockwise
@as_numpy_rounds
def input_gradient(dout, x, dx, mean, scale, shift, slope):
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            dx[i, j] = (dout[i, j] - shift[j] - (x[i, j] - mean[j]) * slope[j]) * scale[j]


@or_blockwise
@as_numpy_rounds
def normalize_relu(x, out, mean, scale, beta):
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            y = (x[i, j] - mean[j]) * scale[j] + beta[j]
            out[i, j] = 0 if y <= 0 else y  # NaN stays


@or_blockwise
@compiled
def gradient_sums_relu(dout, x, mean, scale, beta):
    n, d = x.shape
    sums, products = np.zeros(d, dout.dtype), np.zeros(d, (dout[:0] * x[:0]).dtype)
    for i in range(n):
        for j in range(d):
            centered = x[i, j] - mean[j]
            # As a rounded sum is positive: a product that is fused with it might not be.
            passed = dout[i, j] if centered * scale[j] > -beta[j] else dout.dtype.type(0)
            sums[j] += passed
            products[j] += passed * centered
    return sums, products


@or_blockwise
@as_numpy_rounds
def input_gradient_relu(dout, x, dx, mean, scale, beta, shift, slope):
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            centered = x[i, j] - mean[j]
            passed = dout[i, j] if centered * scale[j] > -beta[j] else dout.dtype.type(0)
            dx[i, j] = (passed - shift[j] - centered * slope[j]) * scale[j]


@intrinsic  # type: ignore[untyped-decorator]
def high_product(typing: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of a product of two uint64."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(arg, wide) for arg in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@or_blockwise
@compiled
def dropout_mask(seed, stream, counter, carry, dropped, kept, mask):
    """Philox 4x64-10, a block of which is eight numbers of 32 bits."""
    for block in range((mask.size + 7) // 8):
        count = counter + np.uint64(block + 1)
        c0, c1, c2, c3 = count, carry + np.uint64(count <= np.uint64(block)), np.uint64(0), np.uint64(0)
        k0, k1 = seed, stream
        for _ in range(10):
            high0, low0 = high_product(PHILOX_M0, c0), PHILOX_M0 * c0
            high1, low1 = high_product(PHILOX_M1, c2), PHILOX_M1 * c2
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + PHILOX_W0, k1 + PHILOX_W1
        words = (c0, c1, c2, c3)
        for i in range(min(8, mask.size - 8 * block)):
            bits = (words[i // 2] >> np.uint64(32 * (i % 2))) & np.uint64(0xFFFFFFFF)
            mask[8 * block + i] = kept if bits >= dropped else mask.dtype.type(0)


@or_blockwise
def window_max(x: np.ndarray, window: Window, out: np.ndarray, place: np.ndarray) -> None:
    _window_max(x, window.size, window.stride, out, place)


@compiled
def _window_max(x, size, stride, out, place):
    n, height, width, c = out.shape
    for image in range(n):
        for i in range(height):
            for j in range(width):
                largest, where = out[image, i, j], place[image, i, j]
                for channel in range(c):
                    largest[channel] = x[image, i * stride[0], j * stride[1], channel]
                    where[channel] = 0
                for k in range(1, size[0] * size[1]):
                    tap = x[image, i * stride[0] + k // size[1], j * stride[1] + k % size[1]]
                    for channel in range(c):
                        new, old = tap[channel], largest[channel]
                        is_larger = (new > old) | ((new != new) & (old == old))  # NaN is larger than any number
                        largest[channel] = new if is_larger else old
                        where[channel] = k if is_larger else where[channel]


@or_blockwise
def window_max_grad(dout: np.ndarray, place: np.ndarray, window: Window, dx: np.ndarray) -> None:
    _window_max_grad(dout, place, window.size, window.stride, dx)


@compiled
def _window_max_grad(dout, place, size, stride, dx):
    n, height, width, c = dout.shape
    if size == stride:
        for image in range(n):
            for i in range(height):
                for j in range(width):
                    for k in range(size[0] * size[1]):
                        row, col = i * size[0] + k // size[1], j * size[1] + k % size[1]
                        for channel in range(c):
                            is_largest = place[image, i, j, channel] == k
                            dx[image, row, col, channel] = dout[image, i, j, channel] if is_largest else 0
        return
    tap_rows, tap_cols = np.empty(size[0] * size[1], np.intp), np.empty(size[0] * size[1], np.intp)
    for k in range(len(tap_rows)):
        tap_rows[k], tap_cols[k] = k // size[1], k % size[1]
    for image in range(n):
        for i in range(height):
            for j in range(width):
                for channel in range(c):
                    k = place[image, i, j, channel]
                    row, col = i * stride[0] + tap_rows[k], j * stride[1] + tap_cols[k]
                    dx[image, row, col, channel] += dout[image, i, j, channel]


@numba.njit
def _line(x, i, outside):
    """Row i of an image; what is given where there is none."""
    return x[i] if 0 <= i < x.shape[0] else outside


@or_blockwise
@compiled
def input_transform(x, pad, tiles):
    _, _, n, rows, cols, c = tiles.shape
    width, (top, left) = x.shape[2], pad
    outside = np.zeros((width, c), x.dtype)
    between = np.zeros((4, 2 * cols + 2, c), x.dtype)
    inside = between[:, left : left + width]
    for image in range(n):
        for i in range(rows):
            above, line = 2 * i - top, x[image]
            x0, x1 = _line(line, above, outside), _line(line, above + 1, outside)
            x2, x3 = _line(line, above + 2, outside), _line(line, above + 3, outside)
            for j in range(width):
                for k in range(c):
                    inside[0, j, k] = x0[j, k] - x2[j, k]
                    inside[1, j, k] = x1[j, k] + x2[j, k]
                    inside[2, j, k] = x2[j, k] - x1[j, k]
                    inside[3, j, k] = x1[j, k] - x3[j, k]
            for u in range(4):
                for j in range(cols):
                    for k in range(c):
                        b0, b1 = between[u, 2 * j, k], between[u, 2 * j + 1, k]
                        b2, b3 = between[u, 2 * j + 2, k], between[u, 2 * j + 3, k]
                        tiles[u, 0, image, i, j, k] = b0 - b2
                        tiles[u, 1, image, i, j, k] = b1 + b2
                        tiles[u, 2, image, i, j, k] = b2 - b1
                        tiles[u, 3, image, i, j, k] = b1 - b3


@or_blockwise
@compiled
def output_transform(products, bias, out):
    _, _, n, rows, cols, f = products.shape
    height, width = out.shape[1:3]
    between = np.empty((2, 4, f), products.dtype)
    for image in range(n):
        for i in range(rows):
            for j in range(cols):
                for v in range(4):
                    for k in range(f):
                        p1, p2 = products[1, v, image, i, j, k], products[2, v, image, i, j, k]
                        between[0, v, k] = products[0, v, image, i, j, k] + p1 + p2
                        between[1, v, k] = p1 - p2 - products[3, v, image, i, j, k]
                for u in range(min(2, height - 2 * i)):
                    for k in range(f):
                        left = between[u, 0, k] + between[u, 1, k] + between[u, 2, k]
                        out[image, 2 * i + u, 2 * j, k] = left + bias[k]
                    if 2 * j + 1 < width:
                        for k in range(f):
                            right = between[u, 1, k] - between[u, 2, k] - between[u, 3, k]
                            out[image, 2 * i + u, 2 * j + 1, k] = right + bias[k]


@or_blockwise
@compiled
def gradient_transform(dout, tiles):
    _, _, n, rows, cols, f = tiles.shape
    width = dout.shape[2]
    outside = np.zeros((width, f), dout.dtype)
    between = np.zeros((4, 2 * cols, f), dout.dtype)
    for image in range(n):
        for i in range(rows):
            d0, d1 = _line(dout[image], 2 * i, outside), _line(dout[image], 2 * i + 1, outside)
            for j in range(width):
                for k in range(f):
                    between[0, j, k] = d0[j, k]
                    between[1, j, k] = d0[j, k] + d1[j, k]
                    between[2, j, k] = d0[j, k] - d1[j, k]
                    between[3, j, k] = -d1[j, k]
            for u in range(4):
                for j in range(cols):
                    for k in range(f):
                        b0, b1 = between[u, 2 * j, k], between[u, 2 * j + 1, k]
                        tiles[u, 0, image, i, j, k] = b0
                        tiles[u, 1, image, i, j, k] = b0 + b1
                        tiles[u, 2, image, i, j, k] = b0 - b1
                        tiles[u, 3, image, i, j, k] = -b1
