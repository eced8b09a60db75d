"""Layers one after the other."""

from collections.abc import Callable, Iterator

from xpnn.backend import Array, Shape, library_of
from xpnn.kernels import fast_path
from xpnn.layers.activation import ReLU
from xpnn.layers.batchnorm import BatchNorm
from xpnn.layers.container import Container
from xpnn.layers.layer import Cache, Layer

Forward = Callable[..., tuple[Array, Cache]]


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

    def _steps(self, x: Array) -> list[tuple[str, Layer, Forward | None]]:
        """The layers, without a ReLU where the batch norm before it has a kernel for both, with its forward of both."""
        fast = fast_path("layers.batchnorm.normalize_relu", library_of(x))
        steps: list[tuple[str, Layer, Forward | None]] = []
        for key, layer in self.layers.items():
            name, last, _ = steps[-1] if steps else ("", None, None)
            if fast and type(last) is BatchNorm and type(layer) is ReLU:
                steps[-1] = name, last, last.forward_relu
            else:
                steps.append((key, layer, None))
        return steps

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        caches = []
        for _, layer, forward in self._steps(x):
            x, cache = (forward or layer.forward)(x, train)
            caches.append(cache)
        return x, caches

    def infer(self, x: Array) -> Array:
        for _, layer, forward in self._steps(x):
            x = forward(x)[0] if forward else layer.infer(x)
        return x

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dx: Array | None = dout
        steps = list(zip(self._steps(dout), cache, strict=True))
        # Without input_grad nothing below the first layer with parameters is needed, nor that layer's own dx.
        learning = (i for i, ((_, layer, _), _) in enumerate(steps) if layer.has_params)
        first = 0 if input_grad else next(learning, len(steps))
        for i in reversed(range(first, len(steps))):
            (key, layer, _), layer_cache = steps[i]
            dx, layer_grads = layer.backward(dx, layer_cache, input_grad or i > first)
            for name, grad in layer_grads.items():
                grads[f"{key}.{name}"] = grad
        return (dx if input_grad else None), grads
