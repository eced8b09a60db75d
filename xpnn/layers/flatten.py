"""From images to vectors."""

import math

from xpnn import backend as backends
from xpnn.backend import Array, Shape, one_kind
from xpnn.layers.layer import Cache, Layer, check_dout


def flatten_forward(x: Array) -> tuple[Array, Cache]:
    """Put the numbers of each example in a row, the last axis running fastest: ``out[n,i d2 + j] = x[n,i,j]``.

    Parameters
    ----------
    x : array (N, d1, ..., dk)

    Returns
    -------
    out : array (N, d1 ... dk)
        May be a view of x.
    cache : object
        For `flatten_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        When x has no axis of examples.

    Source: UCLA ECE C147, homework 4, whose affine layer does it.
    """
    xp = one_kind("flatten", x=x)
    if x.ndim < 1:
        raise ValueError(f"flatten: expected x (N, ...); received x {tuple(x.shape)}")
    return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))), (backends.of(x), x.shape)


def flatten_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `flatten_forward`: the gradient in the shape of x.

    Parameters
    ----------
    dout : array (N, d1 ... dk)
        The gradient of the loss by out.
    cache : object
        From `flatten_forward`.

    Returns
    -------
    dx : array (N, d1, ..., dk)
        May be a view of dout.
    """
    kind, shape = cache
    return check_dout("flatten_backward", dout, kind, (shape[0], math.prod(shape[1:]))).reshape(dout, shape)


class Flatten(Layer):
    """`flatten_forward` as a layer."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return flatten_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return flatten_backward(dout, cache), {}
