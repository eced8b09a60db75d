"""The loops of `compiled` without numba: NumPy's operations in blocks that stay in a core's cache."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnn.kernels.numpy.blocks import split
from xpnn.kernels.numpy.workspace import workspace
from xpnn.windows import Window

BLOCK = 2**15  # numbers
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
    _blend(a, decay, np.multiply(dw, dw, out=t), rest)
    np.sqrt(a, out=t)
    t += eps
    np.multiply(dw, lr, out=u)
    w -= np.divide(u, t, out=u)


@by_blocks
def adam(w, dw, v, a, kept, step, b1, rest1, b2, rest2, eps, t, u):
    t[...] = dw
    _blend(v, b1, t, rest1)
    _blend(a, b2, np.multiply(dw, dw, out=t), rest2)
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
    u[...] = dw
    _blend(v, b2, u, rest2)
    if kept != 1:
        w *= kept
    t *= lr
    w -= t


def where_positive(dout, out, dx):
    _keep(dout, out > 0, out=dx)


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


def _blend(old: np.ndarray, kept: Any, new: np.ndarray, rest: Any) -> None:
    """``old = kept old + rest new``; new is used up."""
    new *= rest
    old *= kept
    old += new


def _keep(values: np.ndarray, where: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return the values where a bool array says so, elsewhere zero: ``np.where(where, values, 0)``.

    All bits of a value or none, by a mask of ones or zeros, is several times faster than a choice by bool.
    """
    integer = np.dtype(f"i{values.dtype.itemsize}")
    mask = np.negative(where.view(np.int8)).astype(integer)
    bits = np.bitwise_and(values.view(integer), mask, out=mask if out is None else out.view(integer))
    return bits.view(values.dtype)
