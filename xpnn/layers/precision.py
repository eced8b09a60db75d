"""Half precision where it saves time and memory, single where it would lose too much."""

from functools import wraps
from typing import Any, TypeVar

from xpnn.backend import Array, dtype_name, namespace
from xpnn.layers.layer import Cache, Layer

HALVES = ("float16", "bfloat16")
SomeLayer = TypeVar("SomeLayer", bound=type[Layer])


def is_half(x: Array) -> bool:
    return dtype_name(x.dtype) in HALVES


def widened(x: Array) -> Array:
    """Return x, or for half precision a copy in single, in which squares neither overflow nor vanish."""
    xp = namespace(x)
    return xp.astype(x, xp.float32) if is_half(x) else x


def narrowed(x: Array, dtype: Any) -> Array:
    """Return x in that dtype, itself where it is of it.

    What is computed of bfloat16 and a number of Python's is float32 in NumPy's rules of promotion.
    """
    return x if x.dtype == dtype else namespace(x).astype(x, dtype)


def rounded(x: Array, like: Array) -> Array:
    """Return x, computed of the other array, in half precision where that is."""
    return narrowed(x, like.dtype) if is_half(like) else x


def in_single_precision(layer: SomeLayer) -> SomeLayer:
    """Decorate a layer that takes statistics or adds up small differences: it computes halves in single precision.

    Its parameters and its state are single, too; what it returns to its neighbors is as they have it.
    """
    forward, infer, backward = layer.forward, layer.infer, layer.backward

    @wraps(forward)
    def forward_in_single(self: Any, x: Array, train: bool = False) -> tuple[Array, Cache]:
        out, cache = forward(self, widened(x), train)
        return narrowed(out, x.dtype), cache

    @wraps(infer)
    def infer_in_single(self: Any, x: Array) -> Array:
        return narrowed(infer(self, widened(x)), x.dtype)

    @wraps(backward)
    def backward_in_single(
        self: Any, dout: Array, cache: Cache, input_grad: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        dx, grads = backward(self, widened(dout), cache, input_grad)
        return None if dx is None else narrowed(dx, dout.dtype), grads

    layer.forward, layer.backward = forward_in_single, backward_in_single  # type: ignore[method-assign]
    if "infer" in vars(layer):
        layer.infer = infer_in_single  # type: ignore[method-assign]
    layer.is_single = True
    return layer
