"""The affine, or fully connected, layer: of whole examples, and of the last axis."""

import math
from typing import ClassVar

from xpnn.arguments import check_flag, check_whole
from xpnn.backend import Array, Shape, library_of, namespace, one_kind
from xpnn.kernels import fast_path
from xpnn.layers import initializers
from xpnn.layers.activation import GELU, ReLU
from xpnn.layers.fused import CACHES, Activated, Passed, activate, activated_input_grad, gradient_before, name_of
from xpnn.layers.layer import Cache, Initializer, Layer, Spec, check_dout, check_init
from xpnn.layers.rows import sum_rows
from xpnn.products import product, product_bias


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
    return _affine(x, w, b)


def _affine(x: Array, w: Array, b: Array, activation: str = "") -> tuple[Array, Cache]:
    """`affine_forward`, and an activation if asked for."""
    one_kind("affine", x=x, w=w, b=b)
    if x.ndim < 1 or w.ndim != 2 or b.shape != w.shape[1:] or math.prod(x.shape[1:]) != w.shape[0]:
        raise ValueError(
            "affine: expected x (N, ...) of D numbers an example, w (D, M) and b (M,); "
            f"received x {tuple(x.shape)}, w {tuple(w.shape)} and b {tuple(b.shape)}"
        )
    rows = _rows(x)
    cache = rows, w, x.shape, True  # as of `linear_forward`, which has the same gradients
    return activate(cache, b, activation) if activation else (product_bias(rows, w, b), cache)


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
    _check_affine_dout(dout, cache)
    return linear_input_grad(dout, cache), *linear_param_grads(dout, cache)


def _check_affine_dout(dout: Array, cache: Cache) -> None:
    rows, w, _, _ = cache
    check_dout("affine_backward", dout, w, (rows.shape[0], w.shape[1]))


def _rows(x: Array) -> Array:
    return x if x.ndim == 2 else namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def linear_forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, Cache]:
    """Multiply the last axis by a matrix and add a bias, if there is one: ``out = x w + b``.

    Parameters
    ----------
    x : array (..., D)
    w : array (D, M)
    b : array (M,), optional

    Returns
    -------
    out : array (..., M)
    cache : object
        For `linear_backward`.

    Raises
    ------
    TypeError
        When the arrays are of different kinds or hold no floating-point numbers.
    ValueError
        When the shapes do not fit.
    """
    return _linear(x, w, b)


def _linear(x: Array, w: Array, b: Array | None, activation: str = "") -> tuple[Array, Cache]:
    """`linear_forward`, and an activation if asked for."""
    xp = one_kind("linear", x=x, w=w, **({} if b is None else {"b": b}))
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0] or (b is not None and b.shape != w.shape[1:]):
        raise ValueError(
            "linear: expected x (..., D), w (D, M) and b (M,) or none; received "
            f"x {tuple(x.shape)}, w {tuple(w.shape)} and b {None if b is None else tuple(b.shape)}"
        )
    rows = _last_axis_rows(x)
    cache: Cache = rows, w, x.shape, b is not None
    if activation:
        out, cache = activate(cache, b, activation)
    else:
        out = product(rows, w) if b is None else product_bias(rows, w, b)
    return xp.reshape(out, (*x.shape[:-1], w.shape[1])), cache


def linear_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Differentiate `linear_forward`: ``dx = dout wᵀ``, ``dw = sum_i x_iᵀ dout_i``, ``db = sum_i dout_i``.

    Parameters
    ----------
    dout : array (..., M)
        The gradient of the loss by out.
    cache : object
        From `linear_forward`.

    Returns
    -------
    dx : array (..., D)
    dw : array (D, M)
    db : array (M,), or None where there is no bias
    """
    _check_linear_dout(dout, cache)
    return linear_input_grad(dout, cache), *linear_param_grads(dout, cache)


def _check_linear_dout(dout: Array, cache: Cache) -> None:
    _, w, x_shape, _ = cache
    check_dout("linear_backward", dout, w, (*x_shape[:-1], w.shape[1]))


def linear_input_grad(dout: Array, cache: Cache) -> Array:
    """The dx of `linear_backward` alone."""
    _, w, x_shape, _ = cache
    xp = namespace(dout)
    return xp.reshape(product(_last_axis_rows(dout), w.T), x_shape)


def linear_param_grads(
    dout: Array, cache: Cache, dw: Array | None = None, db: Array | None = None
) -> tuple[Array, Array | None]:
    """The dw and db of `linear_backward` alone; in these arrays where they are given."""
    rows, _, _, has_bias = cache
    douts = _last_axis_rows(dout)
    if not has_bias:
        return product(rows.T, douts, dw), None
    return (fast_path("layers.affine.param_grads", library_of(dout)) or param_grads)(rows, douts, dw, db)


def param_grads(rows: Array, douts: Array, dw: Array | None = None, db: Array | None = None) -> tuple[Array, Array]:
    """The definition of the gradients of a matrix and of the bias that is added; in these arrays where given."""
    return product(rows.T, douts, dw), sum_rows(douts, db)


def _last_axis_rows(x: Array) -> Array:
    return x if x.ndim == 2 else namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


# By the class of an activation, the kernel that makes it worth to compute it with the product.
ACTIVATIONS: dict[type[Layer], str] = dict.fromkeys((ReLU, GELU), "layers.fused.activated")


class _Product(Layer):
    """What `Affine` and `Linear` have in common."""

    torch_names: ClassVar[dict[str, str]] = {"W": "weight", "b": "bias"}
    torch_transposed: ClassVar[frozenset[str]] = frozenset({"W"})

    @staticmethod
    def _check_dout(dout: Array, cache: Cache) -> None:
        raise NotImplementedError

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        dx, grads, _ = self.backward_through(dout, cache, input_grad)
        return dx, grads

    def backward_through(
        self,
        dout: Array,
        cache: Cache,
        input_grad: bool = True,
        below: Activated | None = None,
        layer_below: Layer | None = None,
    ) -> tuple[Array | None, dict[str, Array], Cache]:
        """`backward`, and through the activation that the layer below has computed; also its cache after that."""
        own = cache.own if isinstance(cache, CACHES) else cache
        self._check_dout(dout, own)
        rows, w, x_shape, has_bias = own
        lent = self.grads.pop("W", None), self.grads.pop("b", None)
        if own is cache:
            douts = _last_axis_rows(dout)
            dw, db = linear_param_grads(dout, own, *lent)
        else:
            douts, db = gradient_before(_last_axis_rows(dout), cache, lent[1])
            dw = product(rows.T, douts, lent[0])
        grads = {"W": dw, "b": db} if has_bias else {"W": dw}
        if below is None or len(rows) != len(below.own[0]):  # as where between them rows were flattened
            return (linear_input_grad(douts, own) if input_grad else None), grads, below
        fast = fast_path("layers.fused.activated_input_grad", library_of(dout))
        lent_below = None if layer_below is None else layer_below.grads.pop("b", None)
        dx, db = (fast or activated_input_grad)(douts, w, below.kept, below.activation, lent_below)
        return namespace(dx).reshape(dx, x_shape), grads, Passed(below.own, db)


class Affine(_Product):
    """``x W + b`` with M outputs: `affine_forward` with parameters W (D, M) and b (M,).

    Parameters
    ----------
    units : int
        M, the number of outputs.
    init : initializer
        First values of W; b starts at zeros.
    """

    fuses: ClassVar[dict[type[Layer], str]] = ACTIVATIONS

    def __init__(self, units: int, init: Initializer = initializers.kaiming, name: str = "") -> None:
        super().__init__(name)
        where = name or "affine"
        self.units, self.init = check_whole(where, "units", units), check_init(where, init)

    def output_shape(self, input_shape: Shape) -> Shape:
        return (self.units,)

    def flops(self, input_shape: Shape) -> int:
        return 2 * math.prod(input_shape) * self.units

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        return {
            "W": Spec((math.prod(input_shape), self.units), self.init, decay=True),
            "b": Spec((self.units,), initializers.zeros),
        }

    _check_dout = staticmethod(_check_affine_dout)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return _affine(x, self.params["W"], self.params["b"])

    def forward_through(self, x: Array, after: Layer, train: bool = False) -> tuple[Array, Cache]:
        return _affine(x, self.params["W"], self.params["b"], name_of(after))


class Linear(_Product):
    """``x W + b`` on the last axis of examples (..., D): `linear_forward` with parameters W (D, M) and b (M,).

    Parameters
    ----------
    units : int
        M, the number of outputs.
    bias : bool
        Whether there is a b.
    init : initializer
        First values of W; b starts at zeros.
    """

    fuses: ClassVar[dict[type[Layer], str]] = ACTIVATIONS

    def __init__(
        self, units: int, *, bias: bool = True, init: Initializer = initializers.kaiming, name: str = ""
    ) -> None:
        super().__init__(name)
        where = name or "linear"
        self.units, self.bias = check_whole(where, "units", units), check_flag(where, "bias", bias)
        self.init = check_init(where, init)

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) < 1 or input_shape[-1] < 1:
            where = self.path or "linear"
            raise ValueError(
                f"{where}: expected input of shape (..., D) with at least one feature; received {input_shape}"
            )
        return (*input_shape[:-1], self.units)

    def flops(self, input_shape: Shape) -> int:
        return 2 * math.prod(input_shape) * self.units

    def param_specs(self, input_shape: Shape) -> dict[str, Spec]:
        specs = {"W": Spec((input_shape[-1], self.units), self.init, decay=True)}
        return specs | ({"b": Spec((self.units,), initializers.zeros)} if self.bias else {})

    _check_dout = staticmethod(_check_linear_dout)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return _linear(x, self.params["W"], self.params.get("b"))

    def forward_through(self, x: Array, after: Layer, train: bool = False) -> tuple[Array, Cache]:
        return _linear(x, self.params["W"], self.params.get("b"), name_of(after))
