"""Multiplication by a fixed number."""

from xpnn import backend as backends
from xpnn.arguments import check_number
from xpnn.backend import Array, one_kind
from xpnn.layers.elementwise import elementwise
from xpnn.layers.layer import Cache, Layer, check_dout
from xpnn.layers.precision import narrowed


def scale_forward(x: Array, factor: float) -> tuple[Array, Cache]:
    """Multiply by a number that is not learned: ``out = factor x``.

    Parameters
    ----------
    x : array (...)
    factor : float

    Returns
    -------
    out : array (...)
    cache : object
        For `scale_backward`.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        For a factor that is not finite.

    Source: Page, "How to train your ResNet", 2018, whose scores are 1/8 of what the last layer gives.
    """
    one_kind("scale", x=x)
    factor = _check_factor("scale", factor)
    return _times(factor, x), (backends.of(x), x.shape, factor)


def scale_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `scale_forward`: ``dx = factor dout``.

    Parameters
    ----------
    dout : array (...)
        The gradient of the loss by out.
    cache : object
        From `scale_forward`.

    Returns
    -------
    dx : array (...)
    """
    kind, shape, factor = cache
    check_dout("scale_backward", dout, kind, shape)
    return _times(factor, dout)


def _times(factor: float, x: Array) -> Array:
    return elementwise(lambda x: narrowed(factor * x, x.dtype), x)


def _check_factor(where: str, factor: float) -> float:
    return check_number(where, "a finite factor", factor)


class Scale(Layer):
    """`scale_forward` as a layer, for a net whose scores would be too large.

    Parameters
    ----------
    factor : float
        Not learned.
    """

    def __init__(self, factor: float, *, name: str = "") -> None:
        super().__init__(name)
        self.factor = _check_factor(name or "scale", factor)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return scale_forward(x, self.factor)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return scale_backward(dout, cache), {}
