"""Named arrays that share one flat buffer, so that what concerns all of them is one pass over memory."""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from xpnn import backend as backends
from xpnn.backend import Array, Backend, Shape, dtype_name


class Parameters(MutableMapping[str, Array]):
    """A dict of arrays, each a view into one flat buffer. Assigning to a name copies into its view.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The names, in the order in which the buffer holds them.
    backend : Backend
        Where the buffer lives.
    dtype : str or dtype
        The one dtype of all.

    Attributes
    ----------
    flat : array
        The buffer, of shape ``(size,)``: zeros at first.
    """

    def __init__(self, shapes: Mapping[str, Shape], backend: Backend, dtype: Any = "float32") -> None:
        self.backend = backend
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.flat = backend.zeros((self.size,), dtype)
        self._views = self.views(self.flat)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_views"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._views = self.views(self.flat)

    @property
    def size(self) -> int:
        """How many numbers the arrays hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, flat: Array) -> dict[str, Array]:
        """Return a dict of views into another buffer of the same layout."""
        xp = self.backend.namespace
        out, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            out[name] = xp.reshape(flat[start:stop], shape)
            start = stop
        return out

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._views:
            raise KeyError(f"expected one of {', '.join(self._views)}; received {name!r}")
        value = self.backend.asarray(value, dtype=self.dtype)
        view = self._views[name]
        if value.shape != view.shape:
            raise ValueError(f"{name}: expected shape {tuple(view.shape)}; received {tuple(value.shape)}")
        view[...] = value

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a parameter cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {shape}" for name, shape in self.shapes.items())
        return f"<Parameters {{{shapes}}} {self.dtype} on {self.backend}>"

    @property
    def dtype(self) -> str:
        return dtype_name(self.flat.dtype)

    def like(self) -> "Parameters":
        """Return zeros of the same names, shapes, dtype and backend."""
        out = Parameters(self.shapes, self.backend, self.dtype)
        out.shapes = self.shapes  # the same object, for a quick `is_like`
        return out

    def is_like(self, other: "Parameters") -> bool:
        """Return whether another buffer holds arrays of the same names and shapes, in the same order."""
        return self.shapes is other.shapes or list(self.shapes.items()) == list(other.shapes.items())

    def copy(self) -> "Parameters":
        """Return a copy with a buffer of its own."""
        return self.to(self.backend)

    def to(self, backend: Backend) -> "Parameters":
        """Return a copy on another backend."""
        out = Parameters(self.shapes, backend, self.dtype)
        out.flat[...] = backend.asarray(self.flat)
        return out

    def move(self, backend: Backend) -> None:
        """Move the buffer itself: whoever holds this object goes along."""
        self.adopt(backend, backend.asarray(self.flat, copy=True))

    def adopt(self, backend: Backend, flat: Array) -> None:
        """Let an array of that backend be the buffer."""
        self.backend, self.flat = backend, flat
        self._views = self.views(flat)


def copied(arrays: Mapping[str, Array]) -> Any:
    """Return a copy of named arrays, as `Parameters` where they are."""
    if isinstance(arrays, Parameters):
        return arrays.copy()
    return {name: backends.of(array).asarray(array, copy=True) for name, array in arrays.items()}
