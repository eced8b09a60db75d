"""Work on numbers one by one, whose results lie in memory as the numbers do: images keep their channels last."""

from collections.abc import Callable
from typing import Any

from xpnn.backend import Array, library_of
from xpnn.kernels import fast_path


def elementwise(work: Callable[..., Any], *arrays: Array) -> Any:
    """Return ``work(*arrays)``, an array or several, computed of numbers in the same place of arrays of one shape.

    On CuPy it lies in memory as the first does.
    """
    return (fast_path("layers.elementwise.applied", library_of(arrays[0])) or applied)(work, *arrays)


def applied(work: Callable[..., Any], *arrays: Array) -> Any:
    """The definition of `elementwise`: NumPy and PyTorch see to the order by themselves."""
    return work(*arrays)
