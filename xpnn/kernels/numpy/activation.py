"""ReLU and GELU on NumPy."""

import math
from typing import Any

import numpy as np

from xpnn.kernels import kernel
from xpnn.kernels.numpy.blocks import elementwise
from xpnn.kernels.numpy.loops import loops
from xpnn.special import GELU_FAR
from xpnn.threads import is_held


@kernel("layers.activation.positive_part", "numpy")
def positive_part(x: np.ndarray) -> np.ndarray:
    return elementwise(lambda x, out: np.maximum(x, 0.0, out=out), [x], 1)[0] if is_held() else np.maximum(x, 0.0)


@kernel("layers.activation.where_positive", "numpy")
def where_positive(dout: np.ndarray, out: np.ndarray) -> np.ndarray:
    if dout.dtype != out.dtype:
        return np.where(out > 0, dout, dout.dtype.type(0))
    # In memory as the output was, which the layer before likes best.
    return elementwise(lambda out, dout, dx: loops.where_positive(dout, out, dx), [out, dout], 1)[0]


@kernel("layers.activation.gelu_and_slope", "numpy")
def gelu_and_slope(x: Any, approximate: str) -> tuple[Any, Any]:
    out, slope = elementwise(_fill_tanh if approximate == "tanh" else loops.gelu, [x], 2)
    return out, slope


def _fill_tanh(x: np.ndarray, out: np.ndarray, slope: np.ndarray) -> None:
    root = math.sqrt(2.0 / math.pi)
    np.maximum(x, -GELU_FAR, out=out)
    x = np.minimum(out, GELU_FAR)
    cubic = x * x
    cubic *= root * 0.044715
    np.add(cubic, root, out=slope)
    slope *= x
    np.tanh(slope, out=slope)
    slope *= 0.5
    slope += 0.5
    out *= slope
    density = 1.0 - slope
    density *= slope
    cubic *= 6.0
    cubic += 2.0 * root
    density *= cubic
    density *= x
    slope += density
