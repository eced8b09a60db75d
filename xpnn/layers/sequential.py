"""Layers one after the other."""

from collections.abc import Iterator

from xpnn.backend import Array, Shape
from xpnn.layers.container import Container
from xpnn.layers.layer import Cache, Layer


class Sequential(Container):
    """A layer made of layers: each takes the output of the one before. Names and paths are those of `Container`.

    Parameters
    ----------
    *layers : Layer
        At least one; each only once.

    Raises
    ------
    ValueError
        For a name that stands twice, or a name with a dot.
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.layers.values():
            input_shape = layer.output_shape(input_shape)
        return input_shape

    def walk(self, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        for layer in self.layers.values():
            yield from layer.walk(input_shape)
            input_shape = layer.output_shape(input_shape)

    def first_nonfinite(self, x: Array) -> tuple[str, Array]:
        for layer in self.layers.values():
            name, x = layer.first_nonfinite(x)
            if name:
                return name, x
        return "", x

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        caches = []
        for layer in self.layers.values():
            x, cache = layer.forward(x, train)
            caches.append(cache)
        return x, caches

    def infer(self, x: Array) -> Array:
        for layer in self.layers.values():
            x = layer.infer(x)
        return x

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dx: Array | None = dout
        steps = list(zip(self.layers.items(), cache, strict=True))
        # Without input_grad nothing below the first layer with parameters is needed, nor that layer's own dx.
        learning = (i for i, layer in enumerate(self.layers.values()) if layer.has_params)
        first = 0 if input_grad else next(learning, len(steps))
        for i in reversed(range(first, len(steps))):
            (key, layer), layer_cache = steps[i]
            dx, layer_grads = layer.backward(dx, layer_cache, input_grad or i > first)
            for name, grad in layer_grads.items():
                grads[f"{key}.{name}"] = grad
        return (dx if input_grad else None), grads
