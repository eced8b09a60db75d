"""From images to vectors."""

import math

from xpnn.backend import Array, Shape, namespace
from xpnn.layers.layer import Cache, Layer


class Flatten(Layer):
    """``(N, d1, ..., dk)`` to ``(N, d1 ... dk)``, the last axis running fastest."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:]))), tuple(x.shape)

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return namespace(dout).reshape(dout, cache), {}
