"""Losses: scores and targets in, the loss and its gradient by the scores out.

The loss is an array without dimensions, on the device where the scores are: reading it as a number waits for
the device, so a training loop need not. ``functools.partial`` fixes a loss's options for a model:
``Model(..., loss=partial(softmax_loss, label_smoothing=0.1))``.
"""

import math
from typing import Any

from xpnn import backend as backends
from xpnn import special
from xpnn.arguments import check_number
from xpnn.backend import (
    Array,
    describe,
    indices_below,
    is_array,
    is_floating,
    is_integer,
    library_of,
    namespace,
    one_kind,
)
from xpnn.kernels import fast_path


def softmax_loss(x: Array, y: Array, label_smoothing: float = 0.0, reduction: str = "mean") -> tuple[Array, Array]:
    """Cross-entropy of the softmax: ``loss = mean_i(log sum_j exp(x_ij) - x_iy)``, ``dx = (softmax(x) - 1_y) / N``.

    In general, with targets q: ``loss = mean_i(sum_j q_ij (log sum_k exp(x_ik) - x_ij))`` and
    ``dx = (softmax(x) sum_j q_ij - q) / N``, where q is y or the one-hot form of the labels, and smoothing by s makes
    it ``(1 - s) q + s / C``. For the sum in place of the mean, without N.

    Parameters
    ----------
    x : array (N, C)
        Scores. The loss is finite for any finite scores.
    y : array (N,) of integers, or (N, C) of floating-point numbers
        Labels from 0 to C - 1; or soft ones, the probability of each class.
    label_smoothing : float
        s, from 0 to 1.
    reduction : str
        ``"mean"`` over the examples, or ``"sum"``.

    Returns
    -------
    loss : array ()
    dx : array (N, C)

    Raises
    ------
    TypeError
        When x holds no floating-point numbers, y no labels, or they are of different kinds.
    ValueError
        When the shapes do not fit or an option is none of these; or for a label out of range, where labels are on
        the host.

    Source for smoothing: Szegedy et al., "Rethinking the inception architecture for computer vision", CVPR 2016.
    """
    expected = "label_smoothing from 0 to 1"
    smoothing = check_number("softmax_loss", expected, label_smoothing, lambda number: 0 <= number <= 1)
    if not (is_array(y) and is_floating(y) and y.ndim == 2):
        _, y = _check("softmax_loss", x, y)
        n = _count("softmax_loss", reduction, x.shape[0])
        return (fast_path("losses.cross_entropy", library_of(x)) or cross_entropy)(x, y, smoothing, n)
    xp = _check_same("softmax_loss", x, y)
    y, n = xp.astype(y, x.dtype, copy=False), _count("softmax_loss", reduction, x.shape[0])
    return (fast_path("losses.soft_cross_entropy", library_of(x)) or soft_cross_entropy)(x, y, smoothing, n)


def cross_entropy(x: Array, y: Array, smoothing: float, n: int) -> tuple[Array, Array]:
    """The definition of `softmax_loss` with labels y (N,), where n is N or 1. A label out of range is no class."""
    xp = namespace(x)
    return _cross_entropy(x, _smoothed(xp.astype(_one_hot(xp, x, y), x.dtype), smoothing), 1.0, n)


def soft_cross_entropy(x: Array, y: Array, smoothing: float, n: int) -> tuple[Array, Array]:
    """The definition of `softmax_loss` with soft labels y (N, C), which need not add up to 1; n is N or 1."""
    weight = (1.0 - smoothing) * namespace(x).sum(y, axis=1, keepdims=True) + smoothing
    return _cross_entropy(x, _smoothed(y, smoothing), weight, n)


def _smoothed(targets: Array, smoothing: float) -> Array:
    return (1.0 - smoothing) * targets + smoothing / targets.shape[1] if smoothing else targets


def _cross_entropy(x: Array, targets: Array, weight: Array | float, n: int) -> tuple[Array, Array]:
    """The loss and its gradient, of targets (N, C) that add up to the weight, a number or an array (N, 1)."""
    xp = namespace(x)
    top, low = xp.max(x, axis=1, keepdims=True), float(xp.finfo(x.dtype).min) / 2
    shifted = xp.maximum(x, xp.maximum(top, low) + low) - top  # x - top, which may not overflow
    exp = xp.exp(shifted)
    total = xp.sum(exp, axis=1, keepdims=True)
    loss = xp.sum(targets * (xp.log(total) - shifted) / n)
    return loss, (exp * (weight / total) - targets) / n


def svm_loss(x: Array, y: Array) -> tuple[Array, Array]:
    """Multiclass hinge loss with margin 1: ``loss = mean_i(sum_{j != y} max(0, x_ij - x_iy + 1))``.

    Parameters
    ----------
    x : array (N, C)
        Scores.
    y : array (N,) of integers
        Labels from 0 to C - 1.

    Returns and errors as for `softmax_loss`.

    Source: Weston and Watkins, "Support vector machines for multi-class pattern recognition", ESANN 1999.
    """
    xp, y = _check("svm_loss", x, y)
    n = x.shape[0]
    hit = _one_hot(xp, x, y)
    picked = xp.sum(xp.where(hit, x, 0.0), axis=1, keepdims=True)
    margins = xp.where(hit, 0.0, xp.maximum(x - picked + 1.0, 0.0))
    active = xp.astype(margins > 0.0, x.dtype)
    return xp.sum(margins / n), xp.where(hit, -xp.sum(active, axis=1, keepdims=True), active) / n


def mse_loss(x: Array, y: Array, reduction: str = "mean") -> tuple[Array, Array]:
    """Mean squared error: ``loss = mean((x - y)²)`` over all numbers, ``dx = 2 (x - y) / size``.

    Parameters
    ----------
    x : array of any shape
        Predictions.
    y : array of x's shape
        Targets.
    reduction : str
        ``"mean"`` over all numbers, as in PyTorch, or ``"sum"``: then without the size.

    Returns
    -------
    loss : array ()
    dx : array of x's shape

    Raises
    ------
    TypeError
        When x or y holds no floating-point numbers, or they are of different kinds.
    ValueError
        When the shapes differ, or for another reduction.
    """
    xp = _check_same("mse_loss", x, y)
    n = _count("mse_loss", reduction, math.prod(x.shape))
    error = x - xp.astype(y, x.dtype, copy=False)
    return xp.sum(error * (error / n)), error * (2.0 / n)


def binary_cross_entropy_loss(x: Array, y: Array, reduction: str = "mean") -> tuple[Array, Array]:
    """Cross-entropy of the sigmoid: ``loss = mean(log(1 + exp(x)) - x y)``, ``dx = (sigmoid(x) - y) / size``.

    Parameters
    ----------
    x : array of any shape
        Scores, before the sigmoid. The loss is finite for any finite scores.
    y : array of x's shape
        The probability that each score is to express: from 0 to 1.
    reduction : str
        ``"mean"`` over all numbers, as in PyTorch, or ``"sum"``: then without the size.

    Returns
    -------
    loss : array ()
    dx : array of x's shape

    Raises
    ------
    TypeError
        When x or y holds no floating-point numbers, or they are of different kinds.
    ValueError
        When the shapes differ, or for another reduction; or for a target out of range, where they are on the host.
    """
    where = "binary_cross_entropy_loss"
    xp = _check_same(where, x, y)
    n = _count(where, reduction, math.prod(x.shape))
    if not backends.of(y).asynchronous and bool(xp.any((y < 0.0) | (y > 1.0))):
        worst = float(xp.min(y)) if float(xp.min(y)) < 0 else float(xp.max(y))
        raise ValueError(f"{where}: expected targets from 0 to 1; received {worst}")
    y = xp.astype(y, x.dtype, copy=False)
    # log(1 + exp(x)) is max(x, 0) + log(1 + exp(-|x|)), which does not overflow
    losses = xp.maximum(x, 0.0) - x * y + xp.log1p(xp.exp(-xp.abs(x)))
    return xp.sum(losses * (1.0 / n)), (special.sigmoid(x) - y) * (1.0 / n)


def _one_hot(xp: Any, x: Array, y: Array) -> Array:
    """Bools (N, C): whether a class is the example's label."""
    return y[:, None] == xp.arange(x.shape[1], dtype=xp.int64, device=x.device)[None, :]


def _count(where: str, reduction: str, terms: int) -> int:
    """Return what the sum of the terms is divided by."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{where}: expected reduction 'mean' or 'sum'; received {reduction!r}")
    return terms if reduction == "mean" else 1


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
    return xp, indices_below(where, "labels", y, x.shape[1])


def _check_same(where: str, x: Array, y: Array) -> Any:
    """Return the namespace of scores and targets of one shape, or say what does not fit."""
    xp = one_kind(where, x=x, y=y)
    if x.shape != y.shape:
        raise ValueError(f"{where}: expected x and y of one shape; received x {tuple(x.shape)} and y {tuple(y.shape)}")
    if 0 in x.shape:
        raise ValueError(f"{where}: expected at least one example; received none")
    return xp
