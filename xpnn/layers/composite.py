"""The course's combinations of layers: each forward runs its parts in order, each backward in reverse."""

from typing import Any

from xpnn.backend import Array
from xpnn.layers.activation import relu_backward, relu_forward
from xpnn.layers.affine import affine_backward, affine_forward
from xpnn.layers.batchnorm import batchnorm_backward, batchnorm_forward
from xpnn.layers.convolution import conv_backward, conv_forward
from xpnn.layers.layer import Cache
from xpnn.layers.pooling import max_pool_backward, max_pool_forward


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


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: dict[str, Any]) -> tuple[Array, Cache]:
    """Rectify a convolution: ``out = max(conv(x, w) + b, 0)``.

    Parameters and errors as for `conv_forward`.

    Returns
    -------
    out : array (N, F, H', W')
    cache : object
        For `conv_relu_backward`.
    """
    a, conv_cache = conv_forward(x, w, b, conv_param)
    out, relu_cache = relu_forward(a)
    return out, (conv_cache, relu_cache)


def conv_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Differentiate `conv_relu_forward`; parameters and returns as for `conv_backward`."""
    conv_cache, relu_cache = cache
    return conv_backward(relu_backward(dout, relu_cache), conv_cache)


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: dict[str, Any], pool_param: dict[str, Any]
) -> tuple[Array, Cache]:
    """Pool a rectified convolution: ``out = max_pool(max(conv(x, w) + b, 0))``.

    Parameters and errors as for `conv_forward` and `max_pool_forward`.

    Returns
    -------
    out : array (N, F, H', W')
    cache : object
        For `conv_relu_pool_backward`.
    """
    a, conv_relu_cache = conv_relu_forward(x, w, b, conv_param)
    out, pool_cache = max_pool_forward(a, pool_param)
    return out, (conv_relu_cache, pool_cache)


def conv_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Differentiate `conv_relu_pool_forward`; parameters and returns as for `conv_backward`."""
    conv_relu_cache, pool_cache = cache
    return conv_relu_backward(max_pool_backward(dout, pool_cache), conv_relu_cache)
