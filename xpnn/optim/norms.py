"""Euclidean norms that stay on the device."""

from collections.abc import Sequence
from typing import Any

from xpnn.backend import Array, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.layers.precision import narrowed, widened


def scaled(x: Array, factor: Array, dtype: Any = None) -> Array:
    """Return x times an array (), in x's dtype though the factor may have a wider one, or in another that is given."""
    return narrowed(widened(x) * factor, dtype or x.dtype)


def norm(x: Array) -> Array:
    """Return ``sqrt(sum x²)`` over all of x, an array () of at least single precision."""
    square = (fast_path("optim.norms.sum_of_squares", library_of(x)) or sum_of_squares)(x)
    return namespace(square).sqrt(square)


def sum_of_squares(x: Array) -> Array:
    """The definition of a norm's square: ``sum x²``, an array () of at least single precision."""
    x = widened(x)
    return namespace(x).sum(x * x)


def clip_factor(arrays: Sequence[Array], max_norm: float) -> Array:
    """Return what scales gradients down to a global norm: ``min(1, max_norm / (norm + 1e-6))``, an array ().

    The norm is taken over all numbers of at least one array, in single precision at least.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013;
    the small number is that of torch.nn.utils.clip_grad_norm_.
    """
    total = sum_of_squares(arrays[0])
    for x in arrays[1:]:
        total = total + sum_of_squares(x)
    xp = namespace(total)
    return xp.minimum(max_norm / (xp.sqrt(total) + 1e-6), xp.ones_like(total))
