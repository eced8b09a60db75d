"""Layers one after the other."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from xpnn.backend import Array, Shape, library_of
from xpnn.kernels import fast_path
from xpnn.layers.activation import ReLU
from xpnn.layers.batchnorm import BatchNorm
from xpnn.layers.container import Container
from xpnn.layers.layer import Cache, Layer

DONE = "the layer before has done it"  # in place of a cache


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

    def _within_norms(self, x: Array) -> set[str]:
        """The ReLUs that the batch norm before them computes, too, where there is a kernel for both."""
        names = list(self.layers)
        fast = fast_path("layers.batchnorm.normalize_relu", library_of(x))
        # A subclass with a backward of its own expects a cache of each layer.
        if fast is None or not type(self).backward.__module__.startswith("xpnn."):
            return set()
        pairs = pairwise(names)
        return {relu for norm, relu in pairs if _is(self.layers[norm], BatchNorm) and _is(self.layers[relu], ReLU)}

    def _forwards(self, x: Array) -> Iterator[tuple[Layer, Callable[..., tuple[Array, Cache]] | None]]:
        """Each layer with its forward; None for what the layer before has done."""
        within = self._within_norms(x)
        names = list(self.layers)
        for name, after in zip(names, [*names[1:], ""], strict=True):
            layer: Any = self.layers[name]
            yield layer, None if name in within else layer.forward_relu if after in within else layer.forward

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        caches = []
        for _, forward in self._forwards(x):
            cache = DONE
            if forward is not None:
                x, cache = forward(x, train)
            caches.append(cache)
        return x, caches

    def infer(self, x: Array) -> Array:
        for layer, forward in self._forwards(x):
            if forward is not None:
                x = layer.infer(x) if forward == layer.forward else forward(x)[0]
        return x

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dx: Array | None = dout
        steps = list(zip(self.layers.items(), cache, strict=True))
        # Without input_grad nothing below the first layer with parameters is needed, nor that layer's own dx.
        learning = (i for i, ((_, layer), _) in enumerate(steps) if layer.has_params)
        first = 0 if input_grad else next(learning, len(steps))
        for i in reversed(range(first, len(steps))):
            (key, layer), layer_cache = steps[i]
            if layer_cache is DONE:
                continue
            dx, layer_grads = layer.backward(dx, layer_cache, input_grad or i > first)
            for name, grad in layer_grads.items():
                grads[f"{key}.{name}"] = grad
        return (dx if input_grad else None), grads


def _is(layer: Layer, kind: type) -> bool:
    """Whether a layer is of that very class, and no method was set on it."""
    return type(layer) is kind and not {"forward", "infer", "backward"} & vars(layer).keys()
