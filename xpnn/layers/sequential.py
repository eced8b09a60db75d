"""Layers one after the other."""

from collections.abc import Iterator
from itertools import count

from xpnn.backend import Array, Shape, describe
from xpnn.layers.layer import Cache, Layer


class Sequential(Layer):
    """A layer made of layers: each takes the output of the one before.

    Layers without a name are called by their kind and number: ``affine1``, ``relu1``, ``affine2``. Parameters
    are named by the path to them: ``affine1.W``, within a nested container ``block2.affine1.W``.

    Parameters
    ----------
    *layers : Layer
        At least one; each only once.

    Raises
    ------
    ValueError
        For a name that stands twice, or a name with a dot.
    """

    def __init__(self, *layers: Layer, name: str = "") -> None:
        super().__init__(name)
        self.layers: dict[str, Layer] = {}
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"sequential: expected layers; received {describe(layer)}")
        taken = {layer.name for layer in layers}
        for layer in layers:
            key = layer.name or _free_name(type(layer).__name__.lower(), taken)
            taken.add(key)
            if key in self.layers or "." in key:
                raise ValueError(f"sequential: expected distinct names without dots; received {key!r}")
            self.layers[key] = layer
        if not layers:
            raise ValueError("sequential: expected at least one layer; received none")
        self.place(name)

    def __repr__(self) -> str:
        return f"Sequential({', '.join(self.layers)})"

    def place(self, path: str) -> None:
        super().place(path)
        for key, layer in self.layers.items():
            layer.place(f"{path}.{key}" if path else key)

    @property
    def has_params(self) -> bool:
        return any(layer.has_params for layer in self.layers.values())

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


def _free_name(kind: str, taken: set[str]) -> str:
    """The kind with the first number that no other name has."""
    return next(name for i in count(1) if (name := f"{kind}{i}") not in taken)
