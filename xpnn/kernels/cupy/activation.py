"""ReLU and GELU on the device, each in one launch."""

from typing import Any

import cupy

from xpnn.kernels import kernel
from xpnn.kernels.cupy.source import C_TYPES, FLAGS, Source, in_one_order, of_each_type

ACTIVATION = Source(
    "activation.cu",
    of_each_type("positive_part<T>", "where_positive<T>", "gelu_and_slope<T, false>", "gelu_and_slope<T, true>"),
)


@kernel("layers.activation.positive_part", "cupy")
def positive_part(x: Any) -> Any:
    (x,) = in_one_order(x)
    out = cupy.empty_like(x)
    ACTIVATION.each(f"positive_part<{C_TYPES[x.dtype.char]}>", x.size, x, out)
    return out


@kernel("layers.activation.where_positive", "cupy")
def where_positive(dout: Any, out: Any) -> Any:
    if dout.dtype != out.dtype:
        return cupy.where(out > 0, dout, dout.dtype.type(0))
    out, dout = in_one_order(out, dout)  # in memory as the output was, which the layer before likes best
    dx = cupy.empty_like(out)
    ACTIVATION.each(f"where_positive<{C_TYPES[dx.dtype.char]}>", dx.size, dout, out, dx)
    return dx


@kernel("layers.activation.gelu_and_slope", "cupy")
def gelu_and_slope(x: Any, approximate: str) -> tuple[Any, Any]:
    (x,) = in_one_order(x)
    out, slope = cupy.empty_like(x), cupy.empty_like(x)
    by_tanh = FLAGS[approximate == "tanh"]
    ACTIVATION.each(f"gelu_and_slope<{C_TYPES[x.dtype.char]}, {by_tanh}>", x.size, x, out, slope)
    return out, slope
