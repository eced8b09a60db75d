"""What layers made of layers share: names and paths."""

from itertools import count
from typing import Any

from xpnn.backend import describe
from xpnn.layers.layer import Layer


class Container(Layer):
    """A layer that holds others.

    Layers without a name are called by their kind and number: ``affine1``, ``relu1``, ``affine2``. Parameters are
    named by the path to them: ``affine1.W``, within a nested container ``block2.affine1.W``.

    Attributes
    ----------
    layers : dict of str to Layer
        By name, in order.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Whoever changes what a container computes says so once: a forward that hides another is what inference runs.
        forward, infer = (
            next(i for i, base in enumerate(cls.__mro__) if name in vars(base)) for name in ("forward", "infer")
        )
        if forward < infer:
            cls.infer = Layer.infer  # type: ignore[method-assign]

    def __init__(self, *layers: Layer, name: str = "") -> None:
        super().__init__(name)
        self.layers: dict[str, Layer] = {}
        where = type(self).__name__.lower()
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"{where}: expected layers; received {describe(layer)}")
        taken = {layer.name for layer in layers}
        for layer in layers:
            key = layer.name or _free_name(type(layer).__name__.lower(), taken)
            taken.add(key)
            if key in self.layers or "." in key:
                raise ValueError(f"{where}: expected distinct names without dots; received {key!r}")
            self.layers[key] = layer
        if not layers:
            raise ValueError(f"{where}: expected at least one layer; received none")
        self.place(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.layers)})"

    def place(self, path: str) -> None:
        super().place(path)
        for key, layer in self.layers.items():
            layer.place(f"{path}.{key}" if path else key)

    @property
    def has_params(self) -> bool:
        return any(layer.has_params for layer in self.layers.values())


def _free_name(kind: str, taken: set[str]) -> str:
    """The kind with the first number that no other name has."""
    return next(name for i in count(1) if (name := f"{kind}{i}") not in taken)
