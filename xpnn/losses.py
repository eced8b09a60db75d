"""Losses: scores and labels in, the mean loss and its gradient by the scores out.

The loss is an array without dimensions, on the device where the scores are: reading it as a number waits for
the device, so a training loop need not.
"""

from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, describe, is_array, is_integer, one_kind


def softmax_loss(x: Array, y: Array) -> tuple[Array, Array]:
    """Cross-entropy of the softmax: ``loss = mean_i(log sum_j exp(x_ij) - x_iy)``, ``dx = (softmax(x) - 1_y) / N``.

    Parameters
    ----------
    x : array (N, C)
        Scores. The loss is finite for any finite scores.
    y : array (N,) of integers
        Labels from 0 to C - 1.

    Returns
    -------
    loss : array ()
    dx : array (N, C)

    Raises
    ------
    TypeError
        When x holds no floating-point numbers, y no integers, or they are of different kinds.
    ValueError
        When the shapes do not fit; or for a label out of range, where labels are on the host.
    """
    xp, y = _check("softmax_loss", x, y)
    n = x.shape[0]
    top, low = xp.max(x, axis=1, keepdims=True), float(xp.finfo(x.dtype).min) / 2
    shifted = xp.maximum(x, xp.maximum(top, low) + low) - top  # x - top, which may not overflow
    exp = xp.exp(shifted)
    total = xp.sum(exp, axis=1, keepdims=True)
    hit = _one_hot(xp, x, y)
    picked = xp.sum(xp.where(hit, shifted, 0.0), axis=1, keepdims=True)
    loss = xp.sum((xp.log(total) - picked) / n)
    return loss, (exp / total - xp.astype(hit, x.dtype)) / n


def svm_loss(x: Array, y: Array) -> tuple[Array, Array]:
    """Multiclass hinge loss with margin 1: ``loss = mean_i(sum_{j != y} max(0, x_ij - x_iy + 1))``.

    Parameters, returns and errors as for `softmax_loss`.

    Source: Weston and Watkins, "Support vector machines for multi-class pattern recognition", ESANN 1999.
    """
    xp, y = _check("svm_loss", x, y)
    n = x.shape[0]
    hit = _one_hot(xp, x, y)
    picked = xp.sum(xp.where(hit, x, 0.0), axis=1, keepdims=True)
    margins = xp.where(hit, 0.0, xp.maximum(x - picked + 1.0, 0.0))
    active = xp.astype(margins > 0.0, x.dtype)
    return xp.sum(margins) / n, xp.where(hit, -xp.sum(active, axis=1, keepdims=True), active) / n


def _one_hot(xp: Any, x: Array, y: Array) -> Array:
    """Bools (N, C): whether a class is the example's label."""
    return y[:, None] == xp.arange(x.shape[1], dtype=xp.int64, device=x.device)[None, :]


def _check(where: str, x: Array, y: Array) -> tuple[Any, Array]:
    """Return the namespace and the labels as int64, or say what does not fit."""
    xp = one_kind(where, x=x)
    if not is_array(y) or backends.of(y) is not backends.of(x):
        raise TypeError(f"{where}: expected x and y of one kind; received x: {describe(x)}, y: {describe(y)}")
    if not is_integer(y):
        raise TypeError(f"{where}: expected integer labels y; received {backends.dtype_name(y.dtype)}")
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"{where}: expected x (N, C) and y (N,); received x {tuple(x.shape)} and y {tuple(y.shape)}")
    if x.shape[0] == 0:
        raise ValueError(f"{where}: expected at least one example; received none")
    y = xp.astype(y, xp.int64, copy=False)
    if not backends.of(y).asynchronous and bool(xp.any((y < 0) | (y >= x.shape[1]))):
        worst = int(xp.min(y)) if int(xp.min(y)) < 0 else int(xp.max(y))
        raise ValueError(f"{where}: expected labels from 0 to {x.shape[1] - 1}; received {worst}")
    return xp, y
