"""The course's combinations of layers: each forward runs its parts in order, each backward in reverse."""

from typing import Any

from xpnn.backend import Array
from xpnn.layers.activation import relu_backward, relu_forward
from xpnn.layers.affine import affine_backward, affine_forward
from xpnn.layers.layer import Cache
from xpnn.layers.normalization import batchnorm_backward, batchnorm_forward


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Rectify an affine function: ``out = max(x w + b, 0)``.

    Parameters and errors as for `affine_forward`.

    Returns
    -------
    out : array (N, M)
    cache : object
        For `affine_relu_backward`.
    """
    a, affine_cache = affine_forward(x, w, b)
    out, relu_cache = relu_forward(a)
    return out, (affine_cache, relu_cache)


def affine_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `affine_relu_forward`; parameters and returns as for `affine_backward`."""
    affine_cache, relu_cache = cache
    return affine_backward(relu_backward(dout, relu_cache), affine_cache)


def affine_batchnorm_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """Rectify a batch-normalized affine function: ``out = max(batchnorm(x w + b), 0)``.

    Parameters and errors as for `affine_forward` and `batchnorm_forward`, with gamma and beta (M,).

    Returns
    -------
    out : array (N, M)
    cache : object
        For `affine_batchnorm_relu_backward`.
    """
    a, affine_cache = affine_forward(x, w, b)
    normalized, bn_cache = batchnorm_forward(a, gamma, beta, bn_param)
    out, relu_cache = relu_forward(normalized)
    return out, (affine_cache, bn_cache, relu_cache)


def affine_batchnorm_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array, Array, Array]:
    """Differentiate `affine_batchnorm_relu_forward`.

    Parameters
    ----------
    dout : array (N, M)
        The gradient of the loss by out.
    cache : object
        From `affine_batchnorm_relu_forward`.

    Returns
    -------
    dx, dw, db : arrays
        As from `affine_backward`.
    dgamma, dbeta : array (M,)
    """
    affine_cache, bn_cache, relu_cache = cache
    da, dgamma, dbeta = batchnorm_backward(relu_backward(dout, relu_cache), bn_cache)
    return *affine_backward(da, affine_cache), dgamma, dbeta
