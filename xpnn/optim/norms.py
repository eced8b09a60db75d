"""Euclidean norms that stay on the device."""

from collections.abc import Iterable
from typing import Any

from xpnn.backend import Array, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.layers.precision import narrowed, widened


def scaled(x: Array, factor: Array, dtype: Any = None) -> Array:
    """Return x times an array (), in x's dtype though the factor may have a wider one, or in another that is given."""
    return narrowed(widened(x) * factor, dtype or x.dtype)


def norm(x: Array) -> Array:
    """Return ``sqrt(sum x²)`` over all of x, an array () of at least single precision."""
    return global_norm([x])


def global_norm(arrays: Iterable[Array]) -> Array:
    """Return ``sqrt(sum x²)`` over all numbers of at least one array, an array () of at least single precision."""
    squares = [(fast_path("optim.norms.sum_of_squares", library_of(x)) or sum_of_squares)(x) for x in arrays]
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return namespace(total).sqrt(total)


def sum_of_squares(x: Array) -> Array:
    """The definition of a norm's square: ``sum x²``, an array () of at least single precision."""
    x = widened(x)
    return namespace(x).sum(x * x)


def clip_factor(arrays: Iterable[Array], max_norm: float) -> Array:
    """Return what scales gradients down to a global norm: ``min(1, max_norm / (norm + 1e-6))``, an array ().

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013;
    the small number is that of torch.nn.utils.clip_grad_norm_.
    """
    size = global_norm(arrays)
    xp = namespace(size)
    return xp.minimum(max_norm / (size + 1e-6), xp.ones_like(size))
