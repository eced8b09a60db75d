"""Layers one after the other."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from xpnn.backend import Array, Shape, library_of
from xpnn.kernels import fast_path
from xpnn.layers.affine import Affine, Linear
from xpnn.layers.container import Container
from xpnn.layers.fused import Activated
from xpnn.layers.layer import Cache, Layer, are_plain

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

    def _pairs(self, x: Array) -> Iterator[tuple[Layer, Layer | None]]:
        """The layers, each with the one behind it that it computes, too, or with None."""
        layers: list[Any] = [*self.layers.values(), None]
        # A backward of a user's own expects a cache of each layer, also one that is said to be ours by functools.wraps.
        of_backward = getattr(type(self).backward, "__globals__", {})
        may = of_backward.get("__name__", "").startswith("xpnn.") and are_plain(self)
        done, library = False, library_of(x)
        for layer, after in pairwise(layers):
            if done:
                done = False
                continue
            kernel = may and layer.fuses and layer.fuses.get(type(after))
            # What a subclass computes may be another thing.
            own = kernel and "fuses" in vars(type(layer)) and are_plain(layer, after)
            done = bool(own and fast_path(kernel, library))
            yield layer, after if done else None

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        caches: list[Cache] = []
        for layer, after in self._pairs(x):
            if after is None:
                x, cache = layer.forward(x, train)
                caches.append(cache)
            else:
                x, cache = layer.forward_through(x, after, train)
                caches += [cache, DONE]
        return x, caches

    def infer(self, x: Array) -> Array:
        for layer, after in self._pairs(x):
            x = layer.infer(x) if after is None else layer.forward_through(x, after)[0]
        return x

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        grads: dict[str, Array] = {}
        dx: Array | None = dout
        caches = list(cache)
        steps: list[Any] = list(zip(self.layers.items(), caches, strict=True))
        # Without input_grad nothing below the first layer with parameters is needed, nor that layer's own dx.
        learning = (i for i, ((_, layer), _) in enumerate(steps) if layer.has_params)
        first = 0 if input_grad else next(learning, len(steps))
        for i in reversed(range(first, len(steps))):
            (key, layer), _ = steps[i]
            if caches[i] is DONE:
                continue
            # The gradient of an activation below may come with the product that gives its output's.
            below = caches[i - 2] if i > first + 1 and caches[i - 1] is DONE else None
            if isinstance(below, Activated) and type(layer) in (Affine, Linear) and are_plain(layer):
                dx, layer_grads, caches[i - 2] = layer.backward_through(
                    dx, caches[i], below=below, layer_below=steps[i - 2][0][1]
                )
            else:
                dx, layer_grads = layer.backward(dx, caches[i], input_grad or i > first)
            for name, grad in layer_grads.items():
                grads[f"{key}.{name}"] = grad
        return (dx if input_grad else None), grads
