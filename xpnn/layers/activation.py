"""Activations."""

import math
from operator import mul

from xpnn import special
from xpnn.arguments import check_number
from xpnn.backend import Array, library_of, namespace, one_kind
from xpnn.kernels import fast_path
from xpnn.layers.elementwise import elementwise
from xpnn.layers.layer import Cache, Layer, check_dout
from xpnn.layers.precision import narrowed


def relu_forward(x: Array) -> tuple[Array, Cache]:
    """The rectified linear unit: ``out = max(x, 0)``. NaN passes through.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of x's shape
    cache : object
        For `relu_backward`: out itself, not a copy: until then it must not be written to.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.

    Source: Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
    """
    one_kind("relu", x=x)
    out = (fast_path("layers.activation.positive_part", library_of(x)) or positive_part)(x)
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
    check_dout("relu_backward", dout, cache, cache.shape)
    return (fast_path("layers.activation.where_positive", library_of(dout)) or where_positive)(dout, cache)


def positive_part(x: Array) -> Array:
    """The definition of `relu_forward`."""
    return namespace(x).maximum(x, 0.0)


def where_positive(dout: Array, out: Array) -> Array:
    """The definition of `relu_backward`."""
    return namespace(dout).where(out > 0.0, dout, 0.0)


def leaky_relu_forward(x: Array, negative_slope: float = 0.01) -> tuple[Array, Cache]:
    """The leaky rectified linear unit: ``out = x`` where x > 0, else ``negative_slope x``.

    Parameters
    ----------
    x : array of any shape
    negative_slope : float
        At least 0.

    Returns
    -------
    out : array of x's shape
    cache : object
        For `leaky_relu_backward`: out itself, not a copy: until then it must not be written to.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        For a negative or infinite slope.

    Source: Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.
    """
    xp = one_kind("leaky_relu", x=x)
    slope = _check_slope("leaky_relu", negative_slope)

    def rectified(x: Array) -> Array:
        out = xp.maximum(x, 0.0)
        if slope:  # 0 times minus infinity is no number
            out = out + slope * xp.minimum(x, 0.0)
        return narrowed(out, x.dtype)

    out = elementwise(rectified, x)
    return out, (out, slope)  # out is positive where x is


def leaky_relu_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `leaky_relu_forward`: ``dx = dout`` where x > 0, else ``negative_slope dout``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `leaky_relu_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    out, slope = cache
    xp = check_dout("leaky_relu_backward", dout, out, out.shape)
    return elementwise(lambda out, dout: narrowed(xp.where(out > 0.0, dout, slope * dout), dout.dtype), out, dout)


def _check_slope(where: str, slope: float) -> float:
    return check_number(where, "a finite negative_slope of at least 0", slope, lambda number: number >= 0)


def sigmoid_forward(x: Array) -> tuple[Array, Cache]:
    """The logistic function: ``out = 1 / (1 + exp(-x))``, without overflow.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of x's shape
    cache : object
        For `sigmoid_backward`: out itself, not a copy: until then it must not be written to.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    """
    one_kind("sigmoid", x=x)
    out = elementwise(lambda x: narrowed(special.sigmoid(x), x.dtype), x)
    return out, out


def sigmoid_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `sigmoid_forward`: ``dx = dout out (1 - out)``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `sigmoid_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    check_dout("sigmoid_backward", dout, cache, cache.shape)
    return elementwise(lambda out, dout: narrowed(dout * (out * (1.0 - out)), dout.dtype), cache, dout)


def tanh_forward(x: Array) -> tuple[Array, Cache]:
    """The hyperbolic tangent: ``out = tanh(x)``.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of x's shape
    cache : object
        For `tanh_backward`: out itself, not a copy: until then it must not be written to.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    """
    out = elementwise(one_kind("tanh", x=x).tanh, x)
    return out, out


def tanh_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `tanh_forward`: ``dx = dout (1 - out²)``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `tanh_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    check_dout("tanh_backward", dout, cache, cache.shape)
    return elementwise(lambda out, dout: narrowed(dout * (1.0 - out * out), dout.dtype), cache, dout)


def silu_forward(x: Array) -> tuple[Array, Cache]:
    """The sigmoid linear unit, or swish: ``out = x sigmoid(x)``.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of x's shape
    cache : object
        For `silu_backward`: the derivative, one array in place of x and its sigmoid.

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units", Neural Networks 2018.
    """
    one_kind("silu", x=x)
    return elementwise(_silu_and_slope, x)


def _silu_and_slope(x: Array) -> tuple[Array, Array]:
    xp, dtype = namespace(x), x.dtype
    x = xp.maximum(x, -special.SILU_FAR)
    gate = special.sigmoid(x)
    slope = gate + xp.minimum(x, special.SILU_FAR) * (gate * (1.0 - gate))
    return narrowed(x * gate, dtype), narrowed(slope, dtype)


def silu_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `silu_forward`: ``dx = dout (s + x s (1 - s))`` with ``s = sigmoid(x)``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `silu_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    check_dout("silu_backward", dout, cache, cache.shape)
    return elementwise(mul, cache, dout)


def gelu_forward(x: Array, approximate: str = "none") -> tuple[Array, Cache]:
    """The Gaussian error linear unit: ``out = x Phi(x)``, Phi the distribution function of N(0, 1).

    ``Phi(x) = (1 + erf(x / sqrt(2))) / 2``, or with ``approximate="tanh"``
    ``Phi(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2``.

    Parameters
    ----------
    x : array of any shape
    approximate : str
        ``"none"`` or ``"tanh"``, as in PyTorch.

    Returns
    -------
    out : array of x's shape
    cache : object
        For `gelu_backward`: the derivative, one array in place of x and Phi(x).

    Raises
    ------
    TypeError
        When x holds no floating-point numbers.
    ValueError
        For another `approximate`.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    """
    one_kind("gelu", x=x)
    _check_approximate("gelu", approximate)
    compute = fast_path("layers.activation.gelu_and_slope", library_of(x)) or gelu_and_slope
    return compute(x, approximate)


def gelu_and_slope(x: Array, approximate: str) -> tuple[Array, Array]:
    """Return ``x Phi(x)`` and its derivative ``Phi(x) + x Phi'(x)``.

    With ``Phi'(x) = exp(-x² / 2) / sqrt(2 pi)``; for a Phi by tanh,
    ``Phi' = 2 sqrt(2 / pi) (1 + 3 * 0.044715 x²) Phi (1 - Phi)``.
    """
    xp = namespace(x)
    x = xp.maximum(x, -special.GELU_FAR)
    near = xp.minimum(x, special.GELU_FAR)
    square = near * near
    if approximate == "tanh":
        root = math.sqrt(2.0 / math.pi)
        phi = 0.5 + 0.5 * xp.tanh(near * (root + root * 0.044715 * square))
        density = phi * (1.0 - phi) * (2.0 * root + 6.0 * root * 0.044715 * square)
    else:
        erf = fast_path("special.erf", library_of(x)) or special.erf
        phi = 0.5 + 0.5 * erf(near * math.sqrt(0.5))
        density = xp.exp(-0.5 * square) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * phi, phi + near * density


def gelu_backward(dout: Array, cache: Cache) -> Array:
    """Differentiate `gelu_forward`: ``dx = dout (Phi(x) + x Phi'(x))``.

    Parameters
    ----------
    dout : array of x's shape
        The gradient of the loss by out.
    cache : object
        From `gelu_forward`.

    Returns
    -------
    dx : array of x's shape
    """
    check_dout("gelu_backward", dout, cache, cache.shape)
    return elementwise(mul, cache, dout)


def _check_approximate(where: str, approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{where}: expected approximate 'none' or 'tanh'; received {approximate!r}")
    return approximate


class ReLU(Layer):
    """`relu_forward` as a layer."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return relu_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return relu_backward(dout, cache), {}


class LeakyReLU(Layer):
    """`leaky_relu_forward` as a layer.

    Parameters
    ----------
    negative_slope : float
        At least 0.
    """

    def __init__(self, negative_slope: float = 0.01, *, name: str = "") -> None:
        super().__init__(name)
        self.negative_slope = _check_slope(name or "leaky_relu", negative_slope)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return leaky_relu_forward(x, self.negative_slope)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return leaky_relu_backward(dout, cache), {}


class Sigmoid(Layer):
    """`sigmoid_forward` as a layer."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return sigmoid_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return sigmoid_backward(dout, cache), {}


class Tanh(Layer):
    """`tanh_forward` as a layer."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return tanh_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return tanh_backward(dout, cache), {}


class SiLU(Layer):
    """`silu_forward` as a layer."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return silu_forward(x)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return silu_backward(dout, cache), {}


class GELU(Layer):
    """`gelu_forward` as a layer.

    Parameters
    ----------
    approximate : str
        ``"none"`` or ``"tanh"``.
    """

    def __init__(self, approximate: str = "none", *, name: str = "") -> None:
        super().__init__(name)
        self.approximate = _check_approximate(name or "gelu", approximate)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return gelu_forward(x, self.approximate)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return gelu_backward(dout, cache), {}
