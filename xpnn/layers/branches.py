"""Layers side by side: each takes the same input, and what they give is added or put together."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

from xpnn.backend import Array, Shape, library_of, namespace
from xpnn.kernels import fast_path
from xpnn.layers.container import Container
from xpnn.layers.elementwise import elementwise
from xpnn.layers.layer import Cache, Layer
from xpnn.layers.sequential import Sequential


class Identity(Layer):
    """``out = x``: the branch that changes nothing."""

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        return x, None

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        return dout, {}


class _Branches(Container):
    """What `Parallel` and `Concat` share: all but how outputs are joined and gradients split."""

    @abstractmethod
    def _join(self, outs: list[Array]) -> Array:
        """Make one output of the branches'."""

    @abstractmethod
    def _split(self, dout: Array, sizes: list[int]) -> list[Array]:
        """The gradient of each branch's output."""

    def _sizes(self, outs: list[Array]) -> list[int]:
        return []

    def walk(self, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        for layer in self.layers.values():
            yield from layer.walk(input_shape)

    def first_nonfinite(self, x: Array) -> tuple[str, Array]:
        outs = []
        for layer in self.layers.values():
            name, out = layer.first_nonfinite(x)
            if name:
                return name, out
            outs.append(out)
        return "", self._join(outs)

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        outs, caches = zip(*(layer.forward(x, train) for layer in self.layers.values()), strict=True)
        return self._join(list(outs)), (caches, self._sizes(list(outs)))

    def infer(self, x: Array) -> Array:
        return self._join([layer.infer(x) for layer in self.layers.values()])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        caches, sizes = cache
        grads: dict[str, Array] = {}
        dxs: list[Any] = []
        parts = self._split(dout, sizes)
        for (key, layer), layer_cache, part in zip(self.layers.items(), caches, parts, strict=True):
            if input_grad or layer.has_params:
                dx, layer_grads = layer.backward(part, layer_cache, input_grad)
                dxs += [] if dx is None else [dx]
                grads |= {f"{key}.{name}": grad for name, grad in layer_grads.items()}
        return (_sum(dxs) if input_grad and dxs else None), grads


def _sum(arrays: Sequence[Array]) -> Array:
    return reduce(partial(elementwise, add), arrays)


class Parallel(_Branches):
    """The sum of several layers of one input.

    Parameters
    ----------
    *layers : Layer
        The branches, whose outputs have one shape; names as in `Sequential`.
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        shapes = [layer.output_shape(input_shape) for layer in self.layers.values()]
        if len(set(shapes)) > 1:
            received = ", ".join(f"{key}: {shape}" for key, shape in zip(self.layers, shapes, strict=True))
            raise ValueError(
                f"{self.path or 'parallel'}: expected branches with outputs of one shape; received {received}"
            )
        return shapes[0]

    def _join(self, outs: list[Array]) -> Array:
        return _sum(outs)

    def _split(self, dout: Array, sizes: list[int]) -> list[Array]:
        return [dout] * len(self.layers)


class Concat(_Branches):
    """The outputs of several layers of one input, put together along the first axis of an example: the channels.

    Parameters
    ----------
    *layers : Layer
        The branches, whose outputs differ in the first axis at most; names as in `Sequential`.
    """

    def output_shape(self, input_shape: Shape) -> Shape:
        shapes = [layer.output_shape(input_shape) for layer in self.layers.values()]
        if not shapes[0] or len({shape[1:] for shape in shapes}) > 1 or len(set(map(len, shapes))) > 1:
            received = ", ".join(f"{key}: {shape}" for key, shape in zip(self.layers, shapes, strict=True))
            raise ValueError(
                f"{self.path or 'concat'}: expected outputs that differ in channels alone; received {received}"
            )
        return sum(shape[0] for shape in shapes), *shapes[0][1:]

    def _join(self, outs: list[Array]) -> Array:
        return (fast_path("layers.branches.joined", library_of(outs[0])) or joined)(*outs)

    def _sizes(self, outs: list[Array]) -> list[int]:
        return [out.shape[1] for out in outs]

    def _split(self, dout: Array, sizes: list[int]) -> list[Array]:
        stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [dout[:, stop - size : stop, ...] for size, stop in zip(sizes, stops, strict=True)]


def joined(*outs: Array) -> Array:
    """The definition of how `Concat` puts outputs together."""
    return namespace(outs[0]).concat(outs, axis=1)


class Residual(Sequential):
    """Layers one after the other, whose input is added to what they give: ``out = layers(x) + shortcut(x)``.

    Parameters
    ----------
    *layers : Layer
        As in `Sequential`.
    shortcut : Layer, optional
        What the input goes through before it is added, where the layers change its shape; the input itself by default.
        Its path ends in ``shortcut``.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    def __init__(self, *layers: Layer, shortcut: Layer | None = None, name: str = "") -> None:
        self.shortcut = Identity() if shortcut is None else shortcut
        if not isinstance(self.shortcut, Layer):
            raise TypeError(f"residual: expected a layer for shortcut; received {shortcut!r}")
        super().__init__(*layers, name=name)
        if "shortcut" in self.layers:
            raise ValueError("residual: expected layers with other names than 'shortcut'; received one of that name")

    def place(self, path: str) -> None:
        super().place(path)
        self.shortcut.place(f"{path}.shortcut" if path else "shortcut")

    @property
    def has_params(self) -> bool:
        return super().has_params or self.shortcut.has_params

    def output_shape(self, input_shape: Shape) -> Shape:
        shape, added = super().output_shape(input_shape), self.shortcut.output_shape(input_shape)
        if shape != added:
            where = self.path or "residual"
            raise ValueError(f"{where}: expected a shortcut of shape {shape}, as the layers give; received {added}")
        return shape

    def walk(self, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        yield from super().walk(input_shape)
        if not isinstance(self.shortcut, Identity):
            yield from self.shortcut.walk(input_shape)

    def first_nonfinite(self, x: Array) -> tuple[str, Array]:
        name, out = super().first_nonfinite(x)
        if name:
            return name, out
        name, added = self.shortcut.first_nonfinite(x)
        return name, _sum([out, added])

    def forward(self, x: Array, train: bool = False) -> tuple[Array, Cache]:
        out, cache = super().forward(x, train)
        added, shortcut_cache = self.shortcut.forward(x, train)
        return _sum([out, added]), (cache, shortcut_cache)

    def infer(self, x: Array) -> Array:
        return _sum([super().infer(x), self.shortcut.infer(x)])

    def backward(self, dout: Array, cache: Cache, input_grad: bool = True) -> tuple[Array | None, dict[str, Array]]:
        layers_cache, shortcut_cache = cache
        dx: Any
        dx, grads = super().backward(dout, layers_cache, input_grad)
        if not input_grad and not self.shortcut.has_params:
            return None, grads
        dadded, shortcut_grads = self.shortcut.backward(dout, shortcut_cache, input_grad)
        grads |= {f"shortcut.{name}": grad for name, grad in shortcut_grads.items()}
        return (_sum([dx, dadded]) if input_grad else None), grads
