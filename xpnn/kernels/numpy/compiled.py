"""Loops that numba compiles when they are first called, and keeps on disk.

Each passes once over memory on one core. Scalars have the dtype of the arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from xpnn.windows import Window


def compiled(loop: Callable[..., Any]) -> Any:
    # Multiplying and adding may be one operation; a division by zero is infinite, as in NumPy.
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(loop)


@compiled
def sgd(w, dw, lr):
    for i in range(w.size):
        w[i] -= lr * dw[i]


@compiled
def sgd_momentum(w, dw, velocity, lr, mu):
    for i in range(w.size):
        velocity[i] = mu * velocity[i] - lr * dw[i]
        w[i] += velocity[i]


@compiled
def sgd_nesterov_momentum(w, dw, velocity, lr, mu):
    for i in range(w.size):
        before = velocity[i]
        velocity[i] = mu * before - lr * dw[i]
        w[i] += velocity[i] + mu * (velocity[i] - before)


@compiled
def nesterov(w, dw, velocity, lr, mu, decay):
    for i in range(w.size):
        g = dw[i] + decay * w[i]
        velocity[i] = mu * velocity[i] + g
        w[i] -= lr * (g + mu * velocity[i])


@compiled
def rmsprop(w, dw, a, lr, decay, rest, eps):
    for i in range(w.size):
        a[i] = decay * a[i] + rest * (dw[i] * dw[i])
        w[i] -= lr * dw[i] / (math.sqrt(a[i]) + eps)


@compiled
def adam(w, dw, v, a, kept, step, b1, rest1, b2, rest2, eps):
    for i in range(w.size):
        v[i] = b1 * v[i] + rest1 * dw[i]
        a[i] = b2 * a[i] + rest2 * (dw[i] * dw[i])
        w[i] = kept * w[i] - step * v[i] / (math.sqrt(a[i]) + eps)


@compiled
def lion(w, dw, v, kept, lr, b1, rest1, b2, rest2):
    for i in range(w.size):
        direction = np.sign(b1 * v[i] + rest1 * dw[i])
        v[i] = b2 * v[i] + rest2 * dw[i]
        w[i] = kept * w[i] - lr * direction


@compiled
def where_positive(dout, out, dx):
    for i in range(dx.size):
        if out[i] > 0:
            dx[i] = dout[i]
        else:
            dx[i] = 0


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


def window_max_grad(dout: np.ndarray, place: np.ndarray, window: Window, dx: np.ndarray) -> None:
    _window_max_grad(dout, place, window.size, window.stride, dx)


@compiled
def _window_max_grad(dout, place, size, stride, dx):
    n, height, width, c = dout.shape
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
