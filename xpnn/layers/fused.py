"""An affine function with the activation behind it, and their gradients: for a device, fewer and shorter passes.

A `Sequential` has a layer compute the activation behind it where its library has a kernel for both. The gradient before
the activation comes with that of the bias; where another product gives the gradient behind it, with that product.
"""

from typing import Any, NamedTuple

from xpnn.backend import Array, library_of
from xpnn.kernels import fast_path
from xpnn.layers.activation import ReLU, gelu_and_slope, positive_part, where_positive
from xpnn.layers.layer import Cache
from xpnn.layers.rows import sum_rows
from xpnn.products import product, product_bias


def activated(rows: Array, w: Array, b: Array | None, activation: str) -> tuple[Array, Cache]:
    """The definition of an affine function with a ``"relu"``, ``"gelu_none"`` or ``"gelu_tanh"`` behind it.

    And of what `activated_grad` needs: the output of a ReLU, or the input of a GELU. A kernel may keep more.
    """
    x = product(rows, w) if b is None else product_bias(rows, w, b)
    if activation == "relu":
        out = positive_part(x)
        return out, out
    return gelu_and_slope(x, activation.removeprefix("gelu_"))[0], x


def activated_grad(dout: Array, kept: Cache, activation: str, db: Array | None = None) -> tuple[Array, Array]:
    """The definition of the gradient before the activation, and of its sum over rows, the gradient of the bias.

    That is in `db` where it is given.
    """
    if activation == "relu":
        dx = where_positive(dout, kept)
    else:
        dx = dout * gelu_and_slope(kept, activation.removeprefix("gelu_"))[1]
    return dx, sum_rows(dx, db)


def activated_input_grad(
    douts: Array, w: Array, kept: Cache, activation: str, db: Array | None = None
) -> tuple[Array, Array]:
    """The definition of both where a layer with matrix w is above the activation: for ``dout = douts wᵀ``."""
    return activated_grad(product(douts, w.T), kept, activation, db)


class Activated(NamedTuple):
    """The cache of a layer that has computed the activation behind it, too."""

    own: Cache
    activation: str
    kept: Cache  # for the activation's gradient


class Passed(NamedTuple):
    """The same, once the layer above has computed the activation's gradient and, with it, that of the bias."""

    own: Cache
    db: Array


CACHES = Activated, Passed


def gradient_before(douts: Array, cache: Activated | Passed, db: Array | None) -> tuple[Array, Array]:
    """Return the gradient before the activation, as rows, and the one of the bias, in `db` where it is given."""
    if isinstance(cache, Passed):
        return douts, cache.db
    fast = fast_path("layers.fused.activated_grad", library_of(douts))
    return (fast or activated_grad)(douts, cache.kept, cache.activation, db)


def activate(cache: Cache, b: Array | None, activation: str) -> tuple[Array, Activated]:
    rows, w, _, _ = cache
    out, kept = (fast_path("layers.fused.activated", library_of(rows)) or activated)(rows, w, b, activation)
    return out, Activated(cache, activation, kept)


def name_of(activation: Any) -> str:
    return "relu" if type(activation) is ReLU else f"gelu_{activation.approximate}"
