"""Multiplication by a fixed number."""

import math

from xpnn.backend import Array
from xpnn.layers.layer import Cache, Layer


class Scale(Layer):
    """``out = factor x``, for a net whose scores would be too large.

    Parameters
    ----------
    factor : float
        Not learned.
    """

    def __init__(self, factor: float, *, name: str = "") -> None:
        super().__init__(name)
        self.factor = float(factor)
        if not math.isfinite(self.factor):
            raise ValueError(f"{name or 'scale'}: expected a finite factor; received {factor!r}")

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return self.factor * x, None

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return self.factor * dout, {}
