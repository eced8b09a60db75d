"""The affine, or fully connected, layer."""

import math
import operator

from xpnn.backend import Array, Shape, namespace, one_kind
from xpnn.layers import initializers
from xpnn.layers.layer import Cache, Initializer, Layer, Spec, check_dout


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Multiply by a matrix and add a bias: ``out = x w + b``.

    Parameters
    ----------
    x : array (N, d1, ..., dk)
        A batch of N examples, each flattened to D = d1 * ... * dk numbers.
    w : array (D, M)
    b : array (M,)

    Returns
    -------
    out : array (N, M)
    cache : object
        For `affine_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit.

    Source: UCLA ECE C147, homework 4.
    """
    xp = one_kind("affine", x=x, w=w, b=b)
    if x.ndim < 1 or w.ndim != 2 or b.shape != w.shape[1:] or math.prod(x.shape[1:]) != w.shape[0]:
        raise ValueError(
            "affine: expected x (N, ...) of D numbers an example, w (D, M) and b (M,); "
            f"received x {tuple(x.shape)}, w {tuple(w.shape)} and b {tuple(b.shape)}"
        )
    rows = _rows(x)
    return xp.matmul(rows, w) + b, (rows, w, x.shape)


def affine_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Differentiate `affine_forward`: ``dx = dout wᵀ``, ``dw = xᵀ dout``, ``db = sum_i dout_i``.

    Parameters
    ----------
    dout : array (N, M)
        The gradient of the loss by out.
    cache : object
        From `affine_forward`.

    Returns
    -------
    dx : array (N, d1, ..., dk)
    dw : array (D, M)
    db : array (M,)
    """
    rows, w, x_shape = cache
    xp = check_dout("affine_backward", dout, w, (rows.shape[0], w.shape[1]))
    dw, db = _affine_param_grads(dout, rows)
    return xp.reshape(xp.matmul(dout, w.T), x_shape), dw, db


def _affine_param_grads(dout: Array, rows: Array) -> tuple[Array, Array]:
    xp = namespace(dout)
    return xp.matmul(rows.T, dout), xp.sum(dout, axis=0)


def _rows(x: Array) -> Array:
    return x if x.ndim == 2 else namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:])))


class Affine(Layer):
    """``x W + b`` with M outputs: `affine_forward` with parameters W (D, M) and b (M,).

    Parameters
    ----------
    units : int
        M, the number of outputs.
    init : initializer
        First values of W; b starts at zeros.
    """

    def __init__(self, units: int, init: Initializer = initializers.kaiming, name: str = "") -> None:
        super().__init__(name)
        self.units = operator.index(units)
        if units < 1:
            raise ValueError(f"{name or 'affine'}: expected at least 1 unit; received {units}")
        if not callable(init):
            raise TypeError(f"{name or 'affine'}: expected units and an initializer; received {units!r} and {init!r}")
        self.init = init

    def output_shape(self, input_shape: Shape) -> Shape:
        return (self.units,)

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {
            "W": Spec((math.prod(input_shape), self.units), self.init, decay=True),
            "b": Spec((self.units,), initializers.zeros),
        }

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return affine_forward(x, self.params["W"], self.params["b"])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        if input_grad:
            dx, dw, db = affine_backward(dout, cache)
            return dx, {"W": dw, "b": db}
        dw, db = _affine_param_grads(dout, cache[0])
        return None, {"W": dw, "b": db}
