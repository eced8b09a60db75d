"""Activations."""

from xpnn.backend import Array, one_kind
from xpnn.layers.layer import Cache, Layer, check_dout


def relu_forward(x: Array) -> tuple[Array, Cache]:
    """The rectified linear unit: ``out = max(x, 0)``. NaN passes through.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of x's shape
    cache : object
        For `relu_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.

    Source: Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
    """
    xp = one_kind("relu", x=x)
    out = xp.maximum(x, 0.0)
    return out, out  # it is positive where x is, and the next layer keeps it anyway


def relu_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `relu_forward`: ``dx = dout`` where x > 0, else 0, also at exactly 0.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `relu_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    xp = check_dout("relu_backward", dout, cache, cache.shape)
    return xp.where(cache > 0.0, dout, 0.0)


class ReLU(Layer):
    """`relu_forward` as a layer."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return relu_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return relu_backward(dout, cache), {}
