"""Loops that numba compiles when they are first called, and keeps on disk.

Each passes once over memory on one core. Scalars have the dtype of the arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np


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
